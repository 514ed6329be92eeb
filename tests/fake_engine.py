"""An engine that runs no model: every answer is a hash of its request, the same in every process.

Tests and benchmarks of the run use it, since a run must neither lose nor confuse rows whatever its engine.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from vsteer.errors import EngineError
from vsteer.protocol import (
    Block,
    BlockScores,
    Engine,
    EngineInfo,
    Request,
    Result,
    Steering,
    Vectors,
    expected_steered_tokens,
)


def number(*content: object) -> float:
    """A number between 0 and 1 that depends on the content alone."""
    digest = hashlib.sha256(repr(content).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


class FakeEngine(Engine):
    """`dies_after` is the number of results that it gives before it dies; 24 of them take `pace` seconds."""

    def __init__(
        self,
        model: str | Path,
        layers: int,
        hidden_size: int,
        *,
        dies_after: int | None = None,
        pace: float = 0.0,
    ) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.info = EngineInfo(
            kind="stand-in",
            dtype="float32",
            model_type="llama",
            layers=layers,
            hidden_size=hidden_size,
            vocab_size=len(self.tokenizer),
            max_model_len=4096,
        )
        self.steps = 0
        self.closed = False
        self._dies_after, self._pace = dies_after, pace
        self._vectors: Vectors = {}
        self._known: set[object] = set()
        self._under_way: list[Request] = []

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        self._vectors = vectors
        self._known = {steering.acting_terms for steering in steerings}

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Batches of 64, given back in an order of their own, as a real engine does."""
        waiting = iter(requests)
        while True:
            while len(self._under_way) < 64 and (request := next(waiting, None)):
                self._under_way.append(request)
            if not self._under_way:
                return
            if self._dies_after is not None and self.steps >= self._dies_after:
                raise EngineError("the engine died: by order", hint="a test ordered it")
            self._under_way.sort(key=lambda one: zlib.crc32(one.id.encode()))
            now, self._under_way = self._under_way[:24], self._under_way[24:]
            if self._pace:
                time.sleep(self._pace)
            for request in now:
                self.steps += 1
                yield self._answer(request)

    def _answer(self, request: Request) -> Result:
        span = (0, 0)
        added: tuple[tuple[int, float, float], ...] = ()
        if request.steering and request.steering.acting_terms:
            assert request.steering.acting_terms in self._known
            span = request.prompt.span(request.steering.positions)
            added = tuple(
                (term.layer, term.multiplier, float(self._vectors[term.vector][term.layer].sum()))
                for term in request.steering.acting_terms
            )
        # hashed once, since a prompt is long and many numbers are drawn from it
        seed = number(request.prompt.token_ids, added, span, request.seed)
        if not request.capture and number("too long", seed) < 0.02:
            return Result(request.id, "error", error="too long: by order")
        tokens = tuple(int(500 * number(seed, n)) for n in range(request.max_tokens))
        return Result(
            request.id,
            "ok",
            token_ids=tokens,
            text=" ".join(map(str, tokens)),
            finish_reason="length",
            logprobs=tuple(
                {token: -5 * number(seed, n, token) for token in request.logprob_token_ids}
                for n in range(request.max_tokens)
            ),
            prompt_logprobs=tuple(
                -5 * number(seed, "prompt", n)
                for n in range(request.prompt_logprobs_from, len(request.prompt.token_ids))
            )
            if request.prompt_logprobs_from is not None
            else (),
            prompt_tokens=len(request.prompt.token_ids),
            cached_tokens=0,
            steered_tokens=expected_steered_tokens(span, len(request.prompt.token_ids), len(tokens)),
            captured=self._captured(request) if request.capture else None,
        )

    def _captured(self, request: Request) -> NDArray[np.float32]:
        rng = np.random.default_rng(int(2**32 * number(request.prompt.token_ids)))
        shape = (len(request.capture), self.info.layers, self.info.hidden_size)
        return rng.standard_normal(shape).astype(np.float32)

    def under_way(self) -> list[str]:
        return [request.id for request in self._under_way]

    def kill(self) -> None:
        self._dies_after = 0

    def exit_codes(self) -> list[int | None]:
        return [None]

    def close(self) -> None:
        self.closed = True


class FakeBlockEngine(FakeEngine):
    """The same answers, of which it gives those of a block at once; it takes two blocks at a time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.info = replace(self.info, blocks=True)
        self._blocks: list[Block] = []

    def run_blocks(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, BlockScores]]:
        waiting = iter(blocks)
        while True:
            while len(self._blocks) < 2 and (block := next(waiting, None)):
                self._blocks.append(block)
            if not self._blocks:
                return
            self._blocks.sort(key=lambda one: number("order", one.id))
            block = self._blocks.pop()
            if self._dies_after is not None and self.steps + len(block.steerings) > self._dies_after:
                raise EngineError("the engine died: by order", hint="a test ordered it")
            if self._pace:
                time.sleep(self._pace * len(block.steerings) / 24)
            self.steps += len(block.steerings)
            yield block, self._scores(block)

    def _scores(self, block: Block) -> BlockScores:
        return BlockScores.of(block, {one.id: self._answer(one) for one in block.requests()})

    def under_way(self) -> list[str]:
        return [*super().under_way(), *(block.id for block in self._blocks)]


class FastBlockEngine(FakeBlockEngine):
    """Scores that cost next to nothing, so that what is measured is the loop around it."""

    def _scores(self, block: Block) -> BlockScores:
        seed = int(2**32 * number(block.prompt.token_ids))
        count = len(block.steerings)
        logprobs = -5 * np.random.default_rng(seed).random((count, sum(len(t) for _, t in block.asked)))
        steered = np.array([0 if steering is None else 1 for steering in block.steerings])
        return BlockScores(logprobs, np.zeros(count, np.int32), steered)
