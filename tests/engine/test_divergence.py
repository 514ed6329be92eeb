"""How far a fork is from the unsteered pass, over the whole vocabulary, against Hugging Face with hooks."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.conftest import CAPTURING, ONE, on
from vsteer.engine.driver import VllmEngine
from vsteer.engine.proof.parity import make_vectors
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.errors import UnsupportedError
from vsteer.operations import OPERATIONS
from vsteer.protocol import Block, Prompt, Request, Steering, Term

MULTIPLIERS = (-3.0, -0.5, 0.02, 1.0, 4.0)


def texts(vocab: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(5)
    return [tuple(int(token) for token in rng.integers(0, vocab, length)) for length in (1, 2, 9, 30)]


def block(name: str, ids: tuple[int, ...], steerings: tuple[Steering | None, ...]) -> Block:
    asked = tuple((ids[1:end], (ids[0],)) for end in range(1, len(ids) + 1))
    return Block(name, Prompt.plain(ids[:1]), asked, steerings, divergence=True)


def steerings_of(engine: VllmEngine, vector: str) -> list[Steering]:
    layers = engine.info.layers
    made = [
        Steering((Term(vector, layer, multiplier),), "all")
        for layer in (0, layers // 2, layers - 1)
        for multiplier in MULTIPLIERS
    ]
    made.append(Steering(tuple(Term(vector, layer, 0.3) for layer in range(layers)), "all"))
    for name, operation in OPERATIONS.items():
        if operation.module and operation.module in engine.capacity.modules:
            made.append(Steering((Term(vector, 1, 1.0, name),), "all"))
    return made


@pytest.mark.long
@on(ONE, CAPTURING[1], slow=CAPTURING[2:])
def test_divergences_are_hugging_faces(engine: VllmEngine, reference: ReferenceEngine) -> None:
    vectors = make_vectors(reference)
    steerings = steerings_of(engine, next(iter(vectors)))
    engine.load(vectors, steerings)
    reference.load(vectors, steerings)
    blocks = [
        block(f"text {n}", ids, (None, *steerings)) for n, ids in enumerate(texts(engine.info.vocab_size))
    ]
    found = {one.id: scores for one, scores in engine.run_blocks(blocks)}
    largest = 0.0
    for one in blocks:
        ids = one.prompt.token_ids + one.asked[-1][0]
        scores = found[one.id]
        assert scores.kl is not None
        assert scores.kl.shape == (len(steerings) + 1, len(ids))
        assert (scores.kl[0] == 0).all()
        unsteered = distributions(reference, ids, None)
        for place, steering in enumerate(steerings, 1):
            steered = distributions(reference, ids, steering)
            expected = (np.exp(unsteered) * (unsteered - steered)).sum(-1)
            np.testing.assert_allclose(scores.kl[place], expected, rtol=2e-3, atol=2e-6)
            largest = max(largest, float(expected.max()))
    assert largest > 0.1


def distributions(reference: ReferenceEngine, ids: tuple[int, ...], steering: Steering | None) -> np.ndarray:
    """Log-probabilities behind each token, in float64."""
    request = Request("whole", Prompt.plain(ids[:1]), steering)
    found: np.ndarray = reference.score(request, (*ids[1:], 0)).double().numpy()
    return found


@pytest.mark.long
@on(ONE)
def test_a_text_that_a_pass_has_no_room_for_is_refused(engine: VllmEngine) -> None:
    ids = (3,) * 200
    with pytest.raises(
        UnsupportedError, match=r"text 0 has 200 tokens, and a forked pass here has room for 64"
    ):
        list(engine.run_blocks([block("text 0", ids, (None,))]))
    assert not engine.under_way()
