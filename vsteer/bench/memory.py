"""The memory that this process holds, in bytes, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

STATUS = Path("/proc/self/status")


def held() -> int:
    return _read("VmRSS")


def most_held() -> int:
    """The peak so far. `ru_maxrss` would say more, since a process begins there with the peak of the one that
    started it."""
    return _read("VmHWM")


def _read(name: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
