"""Seam: the identity of prefix-cache blocks.

Replaces `generate_block_hash_extra_keys` in vllm.v1.core.kv_cache_utils, and wherever it was imported
by name (block_pool, simple_kv_offload.manager). Same signature in vLLM 0.26 to 0.33.
Why: there is no hook for extra keys, and without ours a block computed under one steering would be
served to another. `cache_salt` is no substitute: it forks the unsteered prefix as well.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from vllm.v1.core import kv_cache_utils

from vsteer.engine.worker.cache_identity import block_keys

MARK = "replaced_by_vsteer"
NAME = "generate_block_hash_extra_keys"


def apply() -> None:
    original: Callable[..., tuple[tuple[Any, ...] | None, int]] = getattr(kv_cache_utils, NAME)
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def with_steering(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> tuple[tuple[Any, ...] | None, int]:
        keys, next_mm_idx = original(request, start_token_idx, end_token_idx, start_mm_idx)
        ours = block_keys(request, end_token_idx)
        return ((*(keys or ()), *ours) if ours else keys), next_mm_idx

    setattr(with_steering, MARK, True)
    for module in list(sys.modules.values()):
        if module is not None and module.__dict__.get(NAME) is original:
            setattr(module, NAME, with_steering)
