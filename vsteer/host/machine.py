"""What this machine is and what is free on it, read from the system alone: no torch, no vllm."""

from __future__ import annotations

import ctypes.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vsteer.models import home

# The instructions that decide how fast a processor multiplies matrices.
MATRIX_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
# The libraries that vLLM's CPU workers want preloaded; the second on x86 alone.
ALLOCATOR, OPENMP = "libtcmalloc", "libiomp"


@dataclass(frozen=True)
class Gpu:
    name: str
    driver: str
    total: int
    free: int


@dataclass(frozen=True)
class Machine:
    """Sizes in bytes."""

    system: str
    processor: str
    flags: tuple[str, ...]
    cores: int  # all of the machine's
    usable_cores: int  # those that this process may run on
    quota: float | None  # of processor time, in cores, where a container has less
    load: float  # runnable processes, over the last minute
    niceness: int
    memory: int
    available: int
    gpus: tuple[Gpu, ...]
    gpu_error: str  # nvidia-smi's message where it is installed and fails
    # a folder's use -> where it is, and how much is free there, None where the system doesn't answer
    space: Mapping[str, tuple[Path, int | None]]
    libraries: Mapping[str, str]  # ALLOCATOR and OPENMP as LD_PRELOAD takes them, where installed
    environment: Mapping[str, str] = field(repr=False)


def this_machine() -> Machine:
    processor, flags = _processor()
    found, gpu_error = gpus()
    total, available = _memory()
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=processor,
        flags=flags,
        cores=os.cpu_count() or 1,
        usable_cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        quota=_quota(_text("/sys/fs/cgroup/cpu.max")),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        niceness=os.nice(0) if hasattr(os, "nice") else 0,
        memory=total,
        available=available,
        gpus=found,
        gpu_error=gpu_error,
        space={
            "shared memory": _free(Path("/dev/shm")),
            "temporary files": _free(Path(tempfile.gettempdir())),
            "models and caches": _free(home()),
        },
        libraries=_libraries(),
        environment=dict(os.environ),
    )


def _processor() -> tuple[str, tuple[str, ...]]:
    text = _text("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", text, re.M)
    there = set(flags[1].split()) if flags else set()
    return named[1] if named else platform.processor(), tuple(flag for flag in MATRIX_FLAGS if flag in there)


def _memory() -> tuple[int, int]:
    """How much there is and how much is free, within a container's limit; 0 where the system doesn't say."""
    found = {
        name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", _text("/proc/meminfo"), re.M)
    }
    total, available = found.get("MemTotal", 0), found.get("MemAvailable", 0)
    limit, used = _text("/sys/fs/cgroup/memory.max").strip(), _text("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        return min(total, int(limit)), min(available, max(0, int(limit) - int(used)))
    return total, available


def _quota(limit: str) -> float | None:
    """The cores' worth of time: `200000 100000` is two of them, `max 100000` no limit."""
    allowed, _, period = limit.partition(" ")
    return int(allowed) / int(period) if allowed.isdigit() and period.strip().isdigit() else None


def gpus() -> tuple[tuple[Gpu, ...], str]:
    """The NVIDIA GPUs, and why nvidia-smi could not list them where it is there and fails."""
    if shutil.which("nvidia-smi") is None:
        return (), ""
    fields = "name,driver_version,memory.total,memory.free"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), str(error)
    if done.returncode:
        return (), (done.stdout + done.stderr).strip()
    return tuple(gpu for line in done.stdout.splitlines() if (gpu := _gpu(line))), ""


def _gpu(line: str) -> Gpu | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4:
        return None
    # a GPU that shares the machine's memory has [N/A] here
    total, free = (int(part) * 2**20 if part.isdigit() else 0 for part in parts[2:])
    return Gpu(parts[0], parts[1], total, free)


def _free(folder: Path) -> tuple[Path, int | None]:
    """How much is free on the disk of a folder, which may not exist yet."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    try:
        return folder, shutil.disk_usage(there).free if there else None
    except OSError:
        return folder, None


def _libraries() -> dict[str, str]:
    """The libraries that the loader finds, or that a Python package has installed."""
    allocator = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    openmp = Path(sys.prefix, "lib", "libiomp5.so")
    found = {ALLOCATOR: allocator, OPENMP: str(openmp) if openmp.exists() else None}
    return {name: path for name, path in found.items() if path}


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
