"""Whose prefix-cache block this is: the extra keys that a request of ours adds to a block's hash.

The engine's core process makes block hashes and has no vectors, so the request carries what names
its steering. A block that ends at or before the span's start is unsteered and shared by everyone.
A captured position must be processed, so no block that holds one, or lies behind it, is ever found again.
"""

from __future__ import annotations

from typing import Any

from vsteer.engine.worker.capture import CaptureSpec
from vsteer.engine.worker.step import CellSpan

BlockKey = tuple[str, str]


def block_keys(request: Any, block_end: int) -> tuple[BlockKey, ...]:
    """The tagged keys of a block that ends before position `block_end`; none where everyone may share it."""
    params = request.sampling_params
    extra_args = params.extra_args if params is not None else None
    keys: list[BlockKey] = []
    span = CellSpan.from_extra_args(extra_args)
    if span is not None and block_end > span.start:
        keys.append(("vsteer", f"{span.fingerprint}:{span.start}:{span.end}"))
    capture = CaptureSpec.from_extra_args(extra_args)
    if capture is not None and block_end > capture.positions[0]:
        keys.append(("vsteer", f"capture:{capture.key}"))
    return tuple(keys)
