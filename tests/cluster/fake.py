"""Engines without a model for the processes of a cluster: each answer follows from what is asked alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vsteer import packages
from vsteer.errors import EngineError, ModelError, SteeringFault, UnsupportedError
from vsteer.protocol import Block, BlockScores, Engine, EngineInfo, Request, Result, Steering, Vectors

INFO = EngineInfo(
    "stand-in",
    "float32",
    "llama",
    layers=2,
    hidden_size=4,
    vocab_size=512,
    max_model_len=512,
    forks=True,
    blocks=True,
)


def added(steering: Steering | None, vectors: Vectors) -> float:
    """The sum of all that a steering adds."""
    terms = steering.terms if steering else ()
    return sum(term.multiplier * float(vectors[term.vector][term.layer].sum()) for term in terms)


def answer(request: Request, plus: float = 0.0) -> tuple[int, ...]:
    return (sum(request.prompt.token_ids) % 1009, int(1000 * plus))


def scores(block: Block, vectors: Vectors) -> BlockScores:
    """For each steering what it adds, and for each token asked about its number and the prompt's sum."""
    tokens = np.array([token for _, asked in block.asked for token in asked], np.float64)
    plus = np.array([added(steering, vectors) for steering in block.steerings])
    ends = np.array([0 if steering is None else len(str(steering.positions)) for steering in block.steerings])
    prompt = sum(block.prompt.token_ids)
    return BlockScores(-(plus[:, None] + tokens + prompt), ends, ends + 1, forked=True)


@dataclass
class Orders:
    """What is to befall engines: `dies_first` of them while they start, over all nodes."""

    folder: Path
    pace: float = 0.0  # seconds for each request or block
    dies_first: int = 0
    lacks_model_first: int = 0
    other_vllm_first: int = 0
    unsupported: bool = False
    fault: bool = False

    def __call__(self) -> FakeEngine:
        if self.unsupported:
            raise UnsupportedError("this model is not known", hint="take another")
        if self.fault:
            raise SteeringFault("as asked")
        if self._once("died", self.dies_first):
            os._exit(5)
        if self._once("model", self.lacks_model_first):
            raise ModelError("the model isn't here", hint="bring it")
        if self._once("vllm", self.other_vllm_first):
            from vsteer.cluster import host

            host.installed = lambda names: {**packages.installed(names), "vllm": "0.1"}  # type: ignore[attr-defined]
        return FakeEngine(self)

    def _once(self, what: str, times: int) -> bool:
        for n in range(times):
            try:
                (self.folder / f"{what}-{n}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False


class FakeEngine(Engine):
    """Runs up to 8 requests at once, and notes in a file which process took what."""

    def __init__(self, orders: Orders) -> None:
        self.info = replace(INFO)
        self.steps = 0
        self._taken = (orders.folder / f"taken-{os.getpid()}").open("a", buffering=1)
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        (orders.folder / f"devices-{os.getpid()}").write_text(devices)
        self._pace = orders.pace
        self._vectors: Vectors = {}

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        self._vectors = vectors

    def table_sha256(self) -> str:
        return repr({name: {n: one.sum() for n, one in each.items()} for name, each in self._vectors.items()})

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        waiting, more = iter(requests), True
        running: list[Request] = []
        while more or running:
            while more and len(running) < 8:
                request = next(waiting, None)
                if request is None:
                    more = False
                else:
                    self._take(request.id)
                    running.append(request)
            # the last in is the first out
            for _ in range(min(len(running), 5)):
                yield self._answer(running.pop())

    def run_blocks(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, BlockScores]]:
        for block in blocks:
            self._take(block.id)
            yield block, scores(block, self._vectors)

    def _take(self, name: str) -> None:
        print(name, file=self._taken)
        time.sleep(self._pace)
        self.steps += 1
        if name.startswith("raise EngineError"):
            raise EngineError("the engine died: asked to", hint="none")
        if name.startswith("raise SteeringFault"):
            raise SteeringFault("as asked")
        if name.startswith("die"):
            os._exit(7)

    def _answer(self, request: Request) -> Result:
        captured = np.full((len(request.capture), 2, 4), sum(request.prompt.token_ids), np.float32)
        return Result(
            request.id,
            "ok",
            token_ids=answer(request, added(request.steering, self._vectors)),
            captured=captured if request.capture else None,
        )
