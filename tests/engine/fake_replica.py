"""Engines for the processes of tests of replicas: no model, each answer a function of its request alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsteer.errors import EngineError, SteeringFault, UnsupportedError
from vsteer.protocol import Engine, EngineInfo, Request, Result, Steering, Vectors


def answer(request: Request, added: float = 0.0) -> tuple[int, ...]:
    """What every fake generates; `added` is the sum of what the steering adds from the loaded vectors."""
    return (sum(request.prompt.token_ids) % 1009, int(1000 * added))


class FakeEngine(Engine):
    """Runs up to `batch` requests at once, and notes in a file which process took which request."""

    info = EngineInfo(
        "stand-in", "float32", "llama", layers=2, hidden_size=4, vocab_size=512, max_model_len=512
    )
    steps = 0

    def __init__(self, folder: Path, batch: int, pace: float) -> None:
        self._taken = (folder / f"taken-{os.getpid()}").open("a", buffering=1)
        self._batch, self._pace = batch, pace
        self._vectors: Vectors = {}

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        self._vectors = vectors

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        waiting, more = iter(requests), True
        running: list[Request] = []
        try:
            while more or running:
                while more and len(running) < self._batch:
                    request = next(waiting, None)
                    if request is None:
                        more = False
                        break
                    print(request.id, file=self._taken)
                    running.append(request)
                if self._pace:
                    time.sleep(self._pace)
                # the last in is the first out
                for _ in range(min(len(running), 5)):
                    yield self._answer(running.pop())
        finally:
            print(f"left {len(running)}", file=self._taken)

    def _answer(self, request: Request) -> Result:
        if request.id == "raise EngineError":
            raise EngineError("the engine died: asked to", hint="none")
        if request.id == "raise SteeringFault":
            raise SteeringFault("as asked")
        if request.id == "die":
            os._exit(7)
        added = 0.0
        for term in request.steering.terms if request.steering else ():
            added += term.multiplier * float(self._vectors[term.vector][term.layer].sum())
        captured = np.full((len(request.capture), 2, 4), sum(request.prompt.token_ids), np.float32)
        return Result(
            request.id, "ok", token_ids=answer(request, added), captured=captured if request.capture else None
        )


@dataclass(frozen=True)
class Make:
    """`dies_first` is how many processes die while they start, over all replicas."""

    folder: Path
    batch: int = 8
    pace: float = 0.0
    dies_first: int = 0
    unsupported: bool = False

    def __call__(self) -> FakeEngine:
        if self.unsupported:
            raise UnsupportedError("this model is not known", hint="take another")
        for n in range(self.dies_first):
            try:
                (self.folder / f"died-{n}").touch(exist_ok=False)
            except FileExistsError:
                continue
            os._exit(5)
        return FakeEngine(self.folder, self.batch, self.pace)
