"""A Hugging Face loop to measure against, in a process of its own.

vLLM leaves the process that starts it with one thread of torch's, which would make the loop look slower
than what people run. It works in float32 or bfloat16, whichever this machine does faster.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar

from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.protocol import Vectors

P = ParamSpec("P")
T = TypeVar("T")
PROBE_TOKENS = 128


class HuggingFaceProcess:
    def __init__(self, model: str, vectors: Vectors) -> None:
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_load, initargs=(model, vectors)
        )

    def __call__(
        self, work: Callable[Concatenate[ReferenceEngine, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """`work(reference, ...)` over there; a function of a module, so that it can travel."""
        return self._pool.submit(_work, work, args, kwargs).result()

    @property
    def dtype(self) -> str:
        return self(_dtype)

    def close(self) -> None:
        self._pool.shutdown()


_reference: ReferenceEngine


def _load(model: str, vectors: Vectors) -> None:
    """Runs once in the process that the loop has for itself."""
    import torch

    global _reference
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    candidates = [ReferenceEngine(model, dtype=dtype) for dtype in ("float32", "bfloat16")]
    for candidate in candidates:
        candidate.load(vectors, [])
        _seconds(candidate)
    _reference = min(candidates, key=_seconds)


def _seconds(reference: ReferenceEngine) -> float:
    start = time.perf_counter()
    reference.streams(range(100, 100 + PROBE_TOKENS))
    return time.perf_counter() - start


def _work(work: Callable[..., T], args: Any, kwargs: Any) -> T:
    return work(_reference, *args, **kwargs)


def _dtype(reference: ReferenceEngine) -> str:
    return str(reference.model.dtype).removeprefix("torch.")
