"""The share of a device's memory that vLLM takes by default, read from its source without importing it."""

from __future__ import annotations

import re
from functools import cache

from vsteer.engine.vllm_compat import installed_source

# vLLM 0.32's, for a machine that plans without vLLM.
DEFAULT = 0.92


@cache
def memory_share() -> float:
    source = installed_source()
    if source is None:
        return DEFAULT
    settings = (source / "vllm/config/cache.py").read_text()
    found = re.search(r"^ +gpu_memory_utilization: float = (?:Field\(default=)?([\d.]+)", settings, re.M)
    return float(found[1]) if found else DEFAULT
