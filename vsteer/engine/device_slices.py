"""Where each of several engines on one machine runs: devices of its own, or cores.

What the user restricts (CUDA_VISIBLE_DEVICES, taskset, VLLM_CPU_OMP_THREADS_BIND) is what is shared out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from vsteer.engine.start import EngineOptions, engine_environment
from vsteer.errors import UsageError

T = TypeVar("T")

BIND = "VLLM_CPU_OMP_THREADS_BIND"


@dataclass(frozen=True)
class DeviceSlice:
    """One engine's part of the machine; nothing said: all of it."""

    environment: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()

    def occupy(self) -> None:
        """Keep this process and its children here; before anything of vLLM is imported."""
        os.environ.update(self.environment)
        if self.cores:
            os.sched_setaffinity(0, self.cores)


def find_slices(replicas: int, options: EngineOptions) -> list[DeviceSlice]:
    """This machine's devices, or cores where vLLM runs on a CPU, shared out among the replicas."""
    ranks = options.tensor_parallel_size * options.pipeline_parallel_size
    with engine_environment(options):
        # vllm reads its environment at import
        from vllm.platforms import current_platform
    if current_platform.is_cpu():
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        return cpu_places(replicas, ranks, cores, os.environ.get(BIND, "auto"))
    import torch

    variable: str = current_platform.device_control_env_var
    visible = os.environ.get(variable)
    if visible is None:
        visible = ",".join(map(str, range(torch.cuda.device_count())))
    devices = visible.split(",")
    return device_places(replicas, ranks, [device for device in devices if device], variable)


def device_places(replicas: int, ranks: int, devices: Sequence[str], variable: str) -> list[DeviceSlice]:
    shares = _shares(replicas, ranks, devices, "devices")
    return [DeviceSlice({variable: ",".join(share[:ranks])}) for share in shares]


def cpu_places(replicas: int, ranks: int, cores: Sequence[int], bind: str) -> list[DeviceSlice]:
    """Cores by affinity, which the driver and vLLM go by; the user's own binding by its ranks."""
    if bind not in ("auto", "nobind"):
        shares = _shares(replicas, ranks, bind.split("|"), f"core lists in {BIND}")
        return [DeviceSlice({BIND: "|".join(share[:ranks])}) for share in shares]
    if not cores:
        return [DeviceSlice()] * replicas  # a system without affinity
    return [DeviceSlice(cores=tuple(share)) for share in _shares(replicas, ranks, cores, "cores")]


def _shares(replicas: int, ranks: int, all_of_it: Sequence[T], what: str) -> list[Sequence[T]]:
    each = len(all_of_it) // replicas
    if each < ranks:
        needs = f"{replicas} replicas" + (f" of {ranks} ranks" if ranks > 1 else "")
        raise UsageError(
            f"{needs} need {replicas * ranks} {what}, and there are {len(all_of_it)}",
            hint="take fewer replicas; tensor_parallel_size times pipeline_parallel_size is each one's share",
        )
    return [all_of_it[n * each : (n + 1) * each] for n in range(replicas)]
