"""Seam: the attention of vLLM's layers, which uses the paged cache, while the forked pass runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

Attend = Callable[..., Any]


@contextmanager
def replaced(layers: Sequence[Any], make: Callable[[int, Any], Attend]) -> Iterator[None]:
    """`make(layer, attention)` gives what answers in place of each layer's attention."""
    modules = [layer.self_attn.attn for layer in layers]
    try:
        for layer, module in enumerate(modules):
            # the instance's own attribute stands before its class's
            module.forward = make(layer, module)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)
