"""The prefix cache never serves a block of one steering to another.

1,000 requests that share as much as they can without meaning the same: prefixes, whole prompts, other
configurations' answers as turns of their own prompt, names and cell numbers of a table that was replaced.
Each must equal its own isolated run: Hugging Face's, which has no cache and takes one request at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.engine.conftest import BLOCK, MAX_MODEL_LEN, ONE, on
from vsteer.engine import driver
from vsteer.engine.driver import VllmEngine
from vsteer.engine.proof import canary
from vsteer.engine.proof.parity import TOLERANCE, VECTOR_NAMES, Parity, compare_row, make_vectors
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.engine.table import Capacity
from vsteer.errors import EngineError
from vsteer.protocol import (
    POSITION_WORDS,
    Positions,
    Prompt,
    Request,
    Result,
    Steering,
    Term,
    Vectors,
)

ROUND = 250
MOST_NEW_TOKENS = 24

Cells = list[tuple[Term, ...]]


class Draw:
    """Draws rounds of requests; later rounds build on the answers of earlier ones."""

    def __init__(self, layers: int, vocab_size: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.vocab_size = vocab_size
        self.probes = self.tokens(32)
        self.prefixes = [self.tokens(5 * BLOCK) for _ in range(6)]
        self.cells: Cells = [self._terms(layers) for _ in range(24)]
        self.prompts: list[tuple[int, ...]] = []
        # prompts with the answers they got
        self.conversations: list[tuple[int, ...]] = []
        self.multi_turn = 0

    def tokens(self, count: int) -> tuple[int, ...]:
        return tuple(int(token) for token in self.rng.integers(0, self.vocab_size, count))

    def round(self, count: int) -> list[Request]:
        return [self._request(f"{len(self.prompts)}") for _ in range(count)]

    def answered(self, requests: Sequence[Request], results: Sequence[Result]) -> None:
        prompts = {request.id: request.prompt.token_ids for request in requests}
        self.conversations += [prompts[result.id] + result.token_ids for result in results]

    def _terms(self, layers: int) -> tuple[Term, ...]:
        names = self.rng.permutation(VECTOR_NAMES)[: int(self.rng.integers(1, 3))]
        return tuple(
            Term(str(name), int(self.rng.integers(layers)), float(self.rng.choice([-1.0, 1.0, 2.0])))
            for name in names
        )

    def _request(self, name: str) -> Request:
        token_ids = self._token_ids()
        self.prompts.append(token_ids)
        template = len(token_ids) - int(self.rng.integers(0, 3))
        prompt = Prompt(token_ids, template, template - int(self.rng.integers(0, 3)))
        steering = None
        if self.rng.random() < 0.85:
            terms = self.cells[int(self.rng.integers(len(self.cells)))]
            steering = Steering(terms, self._positions(len(token_ids)))
        return Request(
            name,
            prompt,
            steering,
            max_tokens=int(self.rng.integers(1, MOST_NEW_TOKENS + 1)),
            ignore_eos=True,
            logprob_token_ids=self.probes,
        )

    def _token_ids(self) -> tuple[int, ...]:
        kind = self.rng.random()
        room = MAX_MODEL_LEN - MOST_NEW_TOKENS
        if kind < 0.35 and self.prompts:  # a prompt that was asked before
            return self.prompts[int(self.rng.integers(len(self.prompts)))]
        if kind < 0.7 and self.conversations:
            conversation = self.conversations[int(self.rng.integers(len(self.conversations)))]
            if len(conversation) < room:
                self.multi_turn += 1
                return conversation + self.tokens(
                    int(self.rng.integers(1, min(40, room - len(conversation)) + 1))
                )
        prefix = self.prefixes[int(self.rng.integers(len(self.prefixes)))]
        # half of them leave the prefix at a block's end
        kept = (
            BLOCK * int(self.rng.integers(1, 6))
            if self.rng.random() < 0.5
            else int(self.rng.integers(1, 161))
        )
        return prefix[:kept] + self.tokens(int(self.rng.integers(1, 30)))

    def _positions(self, length: int) -> Positions:
        if self.rng.random() < 0.5:
            return POSITION_WORDS[int(self.rng.integers(len(POSITION_WORDS)))]
        # at, just before and just behind a block's end
        start = BLOCK * int(self.rng.integers(0, length // BLOCK + 1)) + int(self.rng.integers(-1, 2))
        start = max(0, start)
        return start, start + int(self.rng.choice([1, 2, BLOCK, 2 * BLOCK, 1000]))


def serve(
    engine: VllmEngine,
    reference: ReferenceEngine,
    draw: Draw,
    rounds: int,
    count: int,
    vectors: Vectors,
    found: Parity,
) -> None:
    """Load a table, serve rounds of `count` requests under it, and hold each against its isolated run."""
    steerings = [Steering(terms) for terms in draw.cells]
    engine.load(vectors, steerings)
    reference.load(vectors, steerings)
    for _ in range(rounds):
        requests = draw.round(count)
        by_id = {request.id: request for request in requests}
        results = list(engine.run(requests))
        assert sorted(result.id for result in results) == sorted(by_id)
        for result in results:
            compare_row(by_id[result.id], result, reference, TOLERANCE, False, found)
        draw.answered(requests, sorted(results, key=lambda result: int(result.id)))


@pytest.mark.parametrize("count", [80, pytest.param(ROUND, marks=pytest.mark.long)])
@on(ONE)
def test_every_request_equals_its_isolated_run(
    engine: VllmEngine, reference: ReferenceEngine, count: int
) -> None:
    draw = Draw(engine.info.layers, engine.info.vocab_size, seed=count)
    found = Parity()
    before = make_vectors(reference, relative=1.0, seed=0)
    # the same names in the same cells mean something else; but for one vector, which may share its blocks
    after = {**make_vectors(reference, relative=1.0, seed=1), VECTOR_NAMES[2]: before[VECTOR_NAMES[2]]}

    recomputed = []
    for vectors in (before, after):
        serve(engine, reference, draw, 2, count, vectors, found)
        recomputed.append(engine.recomputed_tokens())

    prompt_tokens = sum(map(len, draw.prompts))
    print(
        f"largest difference {found.largest_difference:.2e}; of {prompt_tokens} prompt tokens "
        f"{found.cached_tokens} cached, {recomputed} computed again; {draw.multi_turn} later turns"
    )
    assert not found.failures
    assert found.rows == 4 * count
    assert found.steered_rows > 0.75 * found.rows
    assert found.cached_tokens > 0.2 * prompt_tokens, "the cache was hardly in play"
    assert draw.multi_turn > 0.2 * found.rows
    assert min(recomputed) > 0, "no request was preempted"


@pytest.mark.engine
def test_without_our_block_keys_it_shows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference: ReferenceEngine
) -> None:
    """The canary refuses such an engine; and where it were let through, the requests above would tell."""
    refusals = []

    def refuse(engine: VllmEngine, capacity: Capacity) -> None:
        with pytest.raises(EngineError, match="not told apart") as refusal:
            canary.prove_steering(engine, capacity)
        refusals.append(refusal)

    # vLLM spawns its engine core, and a new Python imports this module first
    (tmp_path / "sitecustomize.py").write_text(
        "from vsteer.engine.worker import cache_identity\n"
        "cache_identity.block_keys = lambda request, block_end: ()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(driver, "prove_steering", refuse)
    engine = ONE.start()
    try:
        assert refusals
        found = Parity()
        draw = Draw(engine.info.layers, engine.info.vocab_size, seed=0)
        serve(engine, reference, draw, 1, ROUND, make_vectors(reference, relative=1.0), found)
        poisoned = {line.split()[0] for line in found.failures}
        print(f"{len(poisoned)} poisoned, largest difference {found.largest_difference:.2e}")
        assert len(poisoned) > 0.05 * ROUND
    finally:
        engine.close()
