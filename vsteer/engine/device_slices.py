"""Where each of several engines on one machine runs: on devices of its own, or on cores of its own.

Only what the user left usable (CUDA_VISIBLE_DEVICES, taskset, VLLM_CPU_OMP_THREADS_BIND) is shared out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from vsteer.engine.options import EngineOptions
from vsteer.engine.start import engine_environment
from vsteer.errors import UsageError

T = TypeVar("T")

BIND = "VLLM_CPU_OMP_THREADS_BIND"


@dataclass(frozen=True)
class DeviceSlice:
    """One engine's part of the machine; by default all of it."""

    environment: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()

    def occupy(self) -> None:
        """Keep this process and its children here. It must come before vLLM is imported."""
        os.environ.update(self.environment)
        if self.cores:
            os.sched_setaffinity(0, self.cores)


def find_slices(replicas: int, options: EngineOptions) -> list[DeviceSlice]:
    """This machine's devices, or cores where vLLM runs on a CPU, shared out among the replicas."""
    with engine_environment(options):
        # vllm reads its environment at import
        from vllm.platforms import current_platform
    if current_platform.is_cpu():
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        return cpu_slices(replicas, options.ranks, cores, os.environ.get(BIND, "auto"))
    import torch

    variable: str = current_platform.device_control_env_var
    visible = os.environ.get(variable)
    if visible is None:
        visible = ",".join(map(str, range(torch.cuda.device_count())))
    devices = visible.split(",")
    return device_slices(replicas, options.ranks, [device for device in devices if device], variable)


def device_slices(replicas: int, ranks: int, devices: Sequence[str], variable: str) -> list[DeviceSlice]:
    shares = _shares(replicas, ranks, devices, "devices")
    return [DeviceSlice({variable: ",".join(share[:ranks])}) for share in shares]


def cpu_slices(replicas: int, ranks: int, cores: Sequence[int], bind: str) -> list[DeviceSlice]:
    """Slices of the usable cores, or of the user's own binding, which lists cores for each rank."""
    if bind not in ("auto", "nobind"):
        shares = _shares(replicas, ranks, bind.split("|"), f"core lists in {BIND}")
        return [DeviceSlice({BIND: "|".join(share[:ranks])}) for share in shares]
    if not cores:
        return [DeviceSlice()] * replicas  # this system has no affinity
    return [DeviceSlice(cores=tuple(share)) for share in _shares(replicas, ranks, cores, "cores")]


def _shares(replicas: int, ranks: int, shared: Sequence[T], what: str) -> list[Sequence[T]]:
    each = len(shared) // replicas
    if each < ranks:
        needs = f"{replicas} replicas" + (f" of {ranks} ranks" if ranks > 1 else "")
        raise UsageError(
            f"{needs} need {replicas * ranks} {what}, and there are {len(shared)}",
            hint="take fewer replicas; tensor_parallel_size times pipeline_parallel_size is each one's share",
        )
    return [shared[n * each : (n + 1) * each] for n in range(replicas)]
