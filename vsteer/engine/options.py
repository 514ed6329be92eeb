"""How an engine runs: what a grid's engine section may set, and what the driver starts vLLM with.

Nothing here changes what a row means. The dtypes and the quantisation, which do, go with the model.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from vsteer.validation import Count, Name, Strict, wrong

# They read weights from pickles, which no row's identity covers.
_PICKLED = ("pt", "npcache")


# vLLM reads from it how many whole GiB a CPU has for keys and values.
KV_SPACE = "VLLM_CPU_KVCACHE_SPACE"
# vLLM itself would take nearly all of a CPU's memory, and not start where something else has some of it.
CPU_KV_GIB = 1.0


class EngineOptions(Strict):
    tensor_parallel_size: Count = 1
    """How many devices share each layer."""
    pipeline_parallel_size: Count = 1
    """How many devices share the layers among them."""
    max_model_len: Count | None = None
    """The longest prompt with its answer, in tokens; by default the model's own."""
    max_num_seqs: Count = 256
    """How many requests are under way at once."""
    max_num_batched_tokens: Count | None = None
    """How many tokens a step computes; by default vLLM's choice."""
    enforce_eager: bool = False
    """Skip compilation: a quicker start, and slower steps."""
    prefix_caching: bool = True
    """Compute what prompts begin with in common once."""
    block_size: Count | None = None
    """Tokens in a block of the prefix cache; by default vLLM's choice."""
    kv_cache_gib: Annotated[float, Field(gt=0, le=2**20)] | None = None
    """Memory for keys and values, in GiB; on a CPU 1 by default."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of a GPU's memory that vLLM may use; by default nearly all that is free."""
    forks: bool | None = None
    """Compute a question with given answers once unsteered, and each configuration only from its span's start
    and its first steered layer on. By default so it is on a CPU, and not on a GPU, where it was never tried.
    Values agree up to rounding. Pipeline parallelism, a quantised KV cache and prompts longer than
    `max_num_batched_tokens` take requests instead; `vsteer plan` says which way each evaluation goes."""
    load_format: Name = "auto"
    """As in vLLM; random weights (`dummy`) are refused."""
    vllm: dict[str, Any] = Field(default_factory=dict)
    """Further options of vLLM by their own names. Those that might change outputs are refused."""

    @field_validator("load_format")
    @classmethod
    def _reads_no_pickles(cls, value: str) -> str:
        if value in _PICKLED:
            raise wrong(f"load_format: {value} reads pickled weights", "take a model with *.safetensors")
        return value

    @field_validator("vllm")
    @classmethod
    def _runs_no_code(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value.get("trust_remote_code"):
            hint = "leave it out: vsteer runs no code from a model's folder"
            raise wrong("trust_remote_code can't be turned on", hint, "trust_remote_code")
        return value

    @property
    def ranks(self) -> int:
        """The processes that share one model."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


def why_no_forks(options: EngineOptions, kv_cache_dtype: str, gpu: bool) -> str | None:
    """Why no question is computed as a fork; None where forks are used."""
    if options.forks is False:
        return "`engine: {forks: false}` says so"
    if options.forks is None and gpu:
        return "forks were never tried on a GPU (`engine: {forks: true}` turns them on)"
    if options.pipeline_parallel_size > 1:
        return "a forked pass needs all layers in one process, and pipeline_parallel_size is above 1"
    if kv_cache_dtype != "auto":
        return f"a forked pass keeps keys and values unquantised, and kv_cache_dtype is {kv_cache_dtype}"
    return None
