"""What vsteer works with: the families that steer, and the vLLM options that are proven.

Everything else is refused by name at start, before a row could be wrong in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vsteer.errors import UnsupportedError
from vsteer.families import BY_ARCHITECTURE

# Our section of vLLM's additional_config; an engine without it is not ours.
CONFIG_KEY = "vsteer"


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def check_family(architectures: Sequence[str]) -> None:
    if not any(name in BY_ARCHITECTURE for name in architectures):
        raise UnsupportedError(
            f"the model family {', '.join(architectures) or 'unknown'} is not supported",
            hint=f"a family counts once its parity suite passes; what works: {', '.join(BY_ARCHITECTURE)}",
        )


def refuse_unproven(vllm_config: Any) -> None:
    """Raise on any option under which steering has not been shown to be right."""
    parallel, scheduler = vllm_config.parallel_config, vllm_config.scheduler_config
    v2_runner = bool(getattr(vllm_config, "use_v2_model_runner", False))
    refused = {
        "speculative decoding": vllm_config.speculative_config is not None,
        "micro-batching (ubatch, enable_dbo)": bool(getattr(parallel, "use_ubatching", False))
        or bool(getattr(parallel, "enable_dbo", False)),
        "prefill context parallelism": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "decode context parallelism": getattr(parallel, "decode_context_parallel_size", 1) > 1,
        "data parallelism inside one engine": parallel.data_parallel_size > 1,
        "pipeline parallelism on the V1 model runner": parallel.pipeline_parallel_size > 1 and not v2_runner,
        "kv_sharing_fast_prefill": bool(getattr(vllm_config.cache_config, "kv_sharing_fast_prefill", False)),
        # these were not tried
        "concurrent partial prefills": getattr(scheduler, "max_num_partial_prefills", 1) > 1
        or getattr(scheduler, "long_prefill_token_threshold", 0) > 0,
        "LoRA": vllm_config.lora_config is not None,
        "a KV-transfer connector": vllm_config.kv_transfer_config is not None,
        "prompt embeddings": bool(vllm_config.model_config.enable_prompt_embeds),
    }
    found = [name for name, on in refused.items() if on]
    if found:
        raise UnsupportedError(
            f"steering is not proven together with {', '.join(found)}",
            hint="turn it off; what works: tensor parallelism, pipeline parallelism on Model Runner V2, "
            "chunked prefill, prefix caching, eager, compiled, CUDA graphs, quantised weights",
        )
