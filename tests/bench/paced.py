"""An engine without a model that scores blocks at the pace of a GPU, for simulations of many of them.

Its processes import as little as they can, since a simulation has dozens on one machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsteer.protocol import Block, BlockScores, Engine, EngineInfo, Request, Result, Steering, Vectors


@dataclass
class Pace:
    """Starts an engine of so many rows a second, read anew from a file at each run."""

    file: Path
    layers: int
    hidden_size: int
    vocab_size: int

    def __call__(self) -> PacedEngine:
        return PacedEngine(self)


class PacedEngine(Engine):
    def __init__(self, pace: Pace) -> None:
        self.steps = 0
        self._file = pace.file
        self._scores: dict[tuple[int, int], BlockScores] = {}
        self.info = EngineInfo(
            kind="bench",
            dtype="float32",
            model_type="llama",
            layers=pace.layers,
            hidden_size=pace.hidden_size,
            vocab_size=pace.vocab_size,
            max_model_len=4096,
            forks=True,
            blocks=True,
        )

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        pass

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        raise NotImplementedError("it takes blocks alone")

    def run_blocks(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, BlockScores]]:
        each = 1 / float(self._file.read_text())
        due = time.monotonic()
        for block in blocks:
            # a pass of a GPU that had nothing to do begins when there is something
            due = max(due, time.monotonic() - 0.1) + each * len(block.steerings)
            time.sleep(max(0.0, due - time.monotonic()))
            self.steps += 1
            yield block, self._scores_of(block)

    def _scores_of(self, block: Block) -> BlockScores:
        """As many numbers as a real block has, the same ones each time."""
        shape = len(block.steerings), sum(len(tokens) for _, tokens in block.asked)
        if shape not in self._scores:
            logprobs = -5 * np.random.default_rng(0).random(shape, np.float32)
            steered = np.array([steering is not None for steering in block.steerings], np.int32)
            self._scores[shape] = BlockScores(logprobs, 0 * steered, steered, forked=True)
        return self._scores[shape]
