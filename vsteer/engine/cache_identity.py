"""Whose prefix-cache block this is: the extra key that a steered request adds to a block's hash.

The engine's core process makes block hashes and has no vectors, so the request carries what names
its steering. A block that ends at or before the span's start is unsteered and shared by everyone.
"""

from __future__ import annotations

from typing import Any

from vsteer.engine.step import CellSpan

BlockKey = tuple[str, str]


def steering_key(request: Any, block_end: int) -> BlockKey | None:
    """The tagged key of a block that ends before position `block_end`, None where it is unsteered."""
    params = request.sampling_params
    span = CellSpan.from_extra_args(params.extra_args if params is not None else None)
    if span is None or block_end <= span.start:
        return None
    return ("vsteer", f"{span.fingerprint}:{span.start}:{span.end}")
