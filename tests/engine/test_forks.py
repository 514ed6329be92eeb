"""Forks: questions with given answers from one unsteered pass, against Hugging Face and the scheduler."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from tests.engine.conftest import BATCHED_TOKENS, CAPTURING, WITH_MODULES, on
from tests.engine.test_families import QUICK_FAMILIES, named, parity_of, reference_of, setup_of
from vsteer.engine.driver import VllmEngine
from vsteer.engine.proof.fork_parity import compare_forks
from vsteer.engine.proof.parity import TOLERANCE, VECTOR_NAMES, compare, make_requests, make_vectors
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.families import FAMILIES
from vsteer.protocol import OPEN_END, Block, Engine, Positions, Prompt, Request, Steering, Term, Vectors

PROMPTS = 12
ROWS = 240
# A pass takes prompts that are longer than any window (64 tokens).
FAMILY_SETUPS = [
    dataclasses.replace(setup_of(family.name.lower(), True, 1, True), batched_tokens=192, max_num_seqs=32)
    for family in FAMILIES
    if family.name != "Llama"
]


def blocks(
    engine: Engine, seed: int, operations: list[str], longest: int = BATCHED_TOKENS - 4
) -> list[Request]:
    """Rows of a few prompts, each with an answer of up to three tokens, of which others are the beginning.

    Their steerings are the parity suite's, over every kind of positions.
    """
    rng = np.random.default_rng(seed)
    vocab, layers = engine.info.vocab_size, engine.info.layers
    made = make_requests(ROWS, layers, vocab, seed=seed, max_tokens=(1, 2), operations=operations)
    rows = []
    for number in range(PROMPTS):
        length = int(rng.integers(6, longest + 1))
        tokens = tuple(int(token) for token in rng.integers(0, vocab, length))
        base = Prompt(tokens, length - 1, length - 3)
        a, b, c, d = (int(token) for token in rng.integers(0, vocab, 4))
        answers = [(), (a,), (a, b), (a, c), (d,), (d, a, b)]
        for n, row in enumerate(made[number::PROMPTS]):
            answer = answers[n % len(answers)]
            steering = row.steering
            if steering is not None:
                span = base.span(steering.positions)
                if span[0] >= length + len(answer):
                    # what begins behind the last token would change nothing
                    span = (length - 1, OPEN_END)
                steering = dataclasses.replace(steering, positions=span)
            prompt = Prompt(tokens + answer, base.template_length, base.user_turn_length)
            rows.append(
                dataclasses.replace(
                    row, prompt=prompt, steering=steering, max_tokens=1, answer_tokens=len(answer)
                )
            )
    return rows


@on(*CAPTURING[1:], slow=CAPTURING[:1])
def test_forks_along_a_text_do_what_hugging_face_does(engine: VllmEngine, reference: ReferenceEngine) -> None:
    operations = WITH_MODULES if engine.capacity.modules else []
    check_along_texts(engine, reference, (6, BATCHED_TOKENS - 7), make_vectors(reference), operations)


def check_along_texts(
    engine: VllmEngine,
    reference: ReferenceEngine,
    prompt_tokens: tuple[int, int],
    vectors: Vectors,
    operations: list[str],
    seed: int = 4,
    max_tokens: tuple[int, int] = (4, 8),
) -> None:
    rows = make_requests(
        ROWS,
        engine.info.layers,
        engine.info.vocab_size,
        seed=seed,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        operations=operations,
    )
    found = compare_forks(engine, reference, rows, vectors)
    print(f"largest difference {found.largest_difference:.2e}, least slip {found.least_slip:.2e}")
    assert not found.failures
    assert found.rows == ROWS
    assert found.steered_rows >= 0.85 * ROWS


@on(CAPTURING[1], slow=(CAPTURING[0], *CAPTURING[2:]))
def test_forks_do_what_hugging_face_does(engine: VllmEngine, reference: ReferenceEngine) -> None:
    operations = WITH_MODULES if engine.capacity.modules else []
    rows = blocks(engine, 0, operations)
    before = engine.forked
    # one position is read of each row, at which many a slip far from it shows nothing
    found = compare(engine, reference, rows, make_vectors(reference), slips=False)
    print(f"largest difference {found.largest_difference:.2e}")
    assert engine.forked - before == ROWS
    assert not found.failures
    assert found.rows == ROWS
    assert found.steered_rows >= 0.85 * ROWS
    assert found.largest_difference <= TOLERANCE


@on(
    *(setup for setup in FAMILY_SETUPS if setup.model.removeprefix("tiny-") in QUICK_FAMILIES),
    slow=FAMILY_SETUPS,
    ids=named,
)
def test_forks_of_other_families(engine: VllmEngine, request: pytest.FixtureRequest) -> None:
    """Prompts reach beyond the windows of Mistral and Gemma; Gemma 2 caps attention and logits."""
    setup = request.node.callspec.params["engine"]
    reference = reference_of(setup.model)
    vectors = make_vectors(reference, parity_of(setup)[0])
    before = engine.forked
    rows = blocks(engine, 3, WITH_MODULES, longest=150)
    found = compare(engine, reference, rows, vectors, slips=False)
    print(f"largest difference {found.largest_difference:.2e}")
    assert engine.forked - before == ROWS
    assert not found.failures
    longest = parity_of(setup)[1]
    check_along_texts(engine, reference, (6, longest), vectors, WITH_MODULES, 0, (4, 40))


@on(slow=CAPTURING)
def test_2000_rows_are_the_same_both_ways(engine: VllmEngine, reference: ReferenceEngine) -> None:
    """Rows of many prompts, in chunks of 64 tokens, as forks and as requests."""
    operations = WITH_MODULES if engine.capacity.modules else []
    rows = [
        dataclasses.replace(row, id=f"{seed} {row.id}")
        for seed in range(10, 19)
        for row in blocks(engine, seed, operations)
    ]
    assert len(rows) >= 2000
    engine.load(make_vectors(reference), [row.steering for row in rows if row.steering])
    forks = {result.id: result for result in engine.run(rows)}
    largest = 0.0
    for result in engine.run(dataclasses.replace(row, answer_tokens=None) for row in rows):
        fork = forks[result.id]
        assert (fork.forked, result.forked) == (True, False)
        assert fork.steered_tokens == result.steered_tokens
        asked = result.logprobs[0].keys() & fork.logprobs[0].keys()
        assert len(asked) >= 32
        largest = max(largest, *(abs(result.logprobs[0][at] - fork.logprobs[0][at]) for at in asked))
    print(f"largest difference {largest:.2e}")
    assert largest <= TOLERANCE


@on(slow=CAPTURING)
def test_forks_and_requests_leave_nothing_to_each_other(
    engine: VllmEngine, reference: ReferenceEngine
) -> None:
    """In turn, 200 times: what a request or a fork gives is what it gave before the other came."""
    rows = blocks(engine, 1, [])
    vectors = make_vectors(reference)
    engine.load(vectors, [row.steering for row in rows if row.steering])
    texts = [dataclasses.replace(row, max_tokens=5, answer_tokens=None) for row in rows[::40]]
    few = rows[: ROWS // PROMPTS]
    plain = [dataclasses.replace(row, answer_tokens=None) for row in few]
    written = {result.id: result for result in engine.run(texts)}
    scored = {result.id: result for result in engine.run(plain)}
    for turn in range(200):
        mixed: Iterator[Request] = itertools.chain(
            (dataclasses.replace(row, id=f"text {row.id}") for row in texts if turn % 3 == 0), few
        )
        for result in engine.run(mixed):
            name = result.id.removeprefix("text ")
            expected = (written if name != result.id else scored)[name]
            assert (result.token_ids, result.steered_tokens, result.prompt_tokens) == (
                expected.token_ids,
                expected.steered_tokens,
                expected.prompt_tokens,
            )
            for token, value in expected.logprobs[0].items():
                assert result.logprobs[0][token] == pytest.approx(value, abs=TOLERANCE)


@on(slow=CAPTURING[:1])
def test_a_prompt_that_no_pass_has_room_for_is_a_request(engine: VllmEngine) -> None:
    engine.load({}, [])
    prompt = Prompt.plain(range(3, 4 + BATCHED_TOKENS))
    before = engine.forked
    (result,) = engine.run([Request("long", prompt, logprob_token_ids=(5,), answer_tokens=0)])
    assert result.status == "ok"
    assert engine.forked == before


@on(slow=CAPTURING[:1])
def test_forks_of_another_table_are_refused(engine: VllmEngine, reference: ReferenceEngine) -> None:
    rows = [row for row in blocks(engine, 2, []) if row.steering][:5]
    engine.load(make_vectors(reference), [row.steering for row in rows if row.steering])
    engine._table_sha256 = "another"
    with pytest.raises(Exception, match="another steering table"):
        list(engine.run(rows))


@on(CAPTURING[1], slow=(CAPTURING[0], *CAPTURING[2:]))
def test_blocks_give_what_their_requests_give(engine: VllmEngine, reference: ReferenceEngine) -> None:
    """Answers that begin alike, unsteered and steered, and a prompt that no pass has room for."""
    made = made_blocks(engine)
    engine.load(make_vectors(reference), [one for block in made for one in block.steerings if one])
    found = {block.id: scores for block, scores in engine.run_blocks(iter(made))}
    assert engine.under_way() == []
    assert {name: scores.forked for name, scores in found.items()} == {
        block.id: block.id != "long" for block in made
    }
    for block in made:
        plain = [dataclasses.replace(request, answer_tokens=None) for request in block.requests()]
        results = {result.id: result for result in engine.run(plain)}
        scores = found[block.id]
        assert not scores.errors
        for place in range(len(block.steerings)):
            of_row = [results[f"{place}.{n}"] for n in range(len(block.asked))]
            expected = [
                result.logprobs[0][token]
                for result, (_, tokens) in zip(of_row, block.asked, strict=True)
                for token in tokens
            ]
            assert scores.logprobs[place].tolist() == pytest.approx(expected, abs=TOLERANCE)
            assert scores.steered_tokens[place] == sum(result.steered_tokens for result in of_row)


def made_blocks(engine: VllmEngine) -> list[Block]:
    rng = np.random.default_rng(5)
    vocab, layers = engine.info.vocab_size, engine.info.layers
    spans: tuple[Positions, ...] = ("all", "after_prompt", "last_prompt_token", (3, 7))
    steerings = [
        None,
        *(
            Steering((Term(VECTOR_NAMES[n % 2], n % layers, (-1.0) ** n),), positions)
            for n, positions in enumerate(spans * 4)
        ),
    ]
    blocks = []
    for name, length in (("a", 30), ("long", BATCHED_TOKENS + 20), ("b", 50), ("c", 12)):
        tokens = tuple(int(token) for token in rng.integers(0, vocab, length))
        a, b, c, d, e = (int(token) for token in rng.choice(vocab, 5, replace=False))
        asked = (((), (a, d)), ((a,), (b, c)), ((a, b), (e,)))
        blocks.append(Block(name, Prompt(tokens, length - 2, length - 5), asked, tuple(steerings)))
    return blocks


@on(slow=CAPTURING[:1])
def test_a_block_that_cannot_be_served_fails_row_by_row(engine: VllmEngine) -> None:
    engine.load({}, [])
    wrong = Block("wrong", Prompt.plain([1, 2, engine.info.vocab_size]), (((), (5,)),), (None, None))
    ((block, scores),) = engine.run_blocks([wrong])
    assert block is wrong
    assert set(scores.errors) == {0, 1}
    assert "outside the vocabulary" in scores.errors[0]
