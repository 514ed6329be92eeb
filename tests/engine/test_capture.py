"""Is what an engine captures the stream of that layer and that token? Held against Hugging Face hooks."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.conftest import BLOCK, CAPTURES, CAPTURING, MATRIX, ONE, on
from vsteer.engine.driver import VllmEngine
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.engine.worker.cache_identity import block_keys
from vsteer.engine.worker.capture import CaptureSpec, CaptureTable
from vsteer.errors import SteeringFault
from vsteer.protocol import Prompt, Request, Steering, Term


def make_requests(count: int, layers: int, vocab_size: int) -> list[Request]:
    """Captures at up to five positions, every other request steered, half of each prompt shared."""
    rng = np.random.default_rng(7)
    shared = tuple(int(t) for t in rng.integers(0, vocab_size, 200))
    requests = []
    for index in range(count):
        length = int(rng.integers(5, 150))
        fresh = tuple(int(t) for t in rng.integers(0, vocab_size, length))
        tokens = shared[: length // 2] + fresh[length // 2 :]
        captured = sorted({int(p) for p in rng.integers(0, length, int(rng.integers(0, 6)))})
        steering = Steering(
            (Term("v", int(rng.integers(layers)), float(rng.choice([-1, 2]))),), "after_prompt"
        )
        requests.append(
            Request(
                str(index),
                Prompt(tokens, max(1, length - 4), max(1, length - 4)),
                steering if index % 2 else None,
                max_tokens=int(rng.integers(1, 20)),
                ignore_eos=True,
                capture=tuple(captured),
            )
        )
    # Short at first and long at last: whatever the pace at which they reach the engine, any three of them
    # outgrow its blocks, so that some are preempted.
    for index in range(count, count + 8):
        tokens = tuple(int(t) for t in rng.integers(0, vocab_size, 20))
        steering = Steering((Term("v", int(rng.integers(layers)), 2.0),), "after_prompt")
        requests.append(
            Request(str(index), Prompt(tokens, 16, 16), steering, 220, ignore_eos=True, capture=(17,))
        )
    return requests


@on(*CAPTURING)
def test_captured_streams_are_those_of_hugging_face(engine: VllmEngine, reference: ReferenceEngine) -> None:
    rng = np.random.default_rng(0)
    vectors = {
        "v": {
            layer: (3 * rng.standard_normal(engine.info.hidden_size)).astype(np.float32)
            for layer in range(engine.info.layers)
        }
    }
    requests = make_requests(120, engine.info.layers, engine.info.vocab_size)
    # the second copy of a prompt finds its blocks in the cache, up to the first captured position
    requests += [
        Request(f"again {r.id}", r.prompt, r.steering, r.max_tokens, ignore_eos=True, capture=r.capture)
        for r in requests
    ]
    steerings = [r.steering for r in requests if r.steering]
    engine.load(vectors, steerings)
    reference.load(vectors, steerings)
    by_id = {r.id: r for r in requests}
    captured = cached = 0
    for result in engine.run(requests):
        request = by_id[result.id]
        assert result.status == "ok", result.error
        cached += result.cached_tokens
        if not request.capture:
            assert result.captured is None
            continue
        assert result.cached_tokens <= request.capture[0] // BLOCK * BLOCK
        streams = reference.streams(request.prompt.token_ids, request)[:, list(request.capture)]
        expected = streams.swapaxes(0, 1)
        assert result.captured is not None
        assert result.captured.shape == expected.shape
        gap = np.abs(result.captured - expected).max(axis=2)
        assert (gap <= 1e-5 * np.linalg.norm(expected, axis=2)).all(), gap.max()
        captured += len(request.capture)
    assert captured > 400
    assert cached > 0
    assert engine.recomputed_tokens() > 0, "no request was preempted"


@on(ONE)
def test_a_request_that_captures_wrongly_fails_alone(engine: VllmEngine) -> None:
    prompt = Prompt.plain(range(40))
    wrong = [(-1,), (40,), (3, 3), (5, 2), tuple(range(CAPTURES + 1))]
    requests = [Request(str(n), prompt, capture=positions) for n, positions in enumerate(wrong)]
    requests.append(Request("good", prompt, capture=tuple(range(CAPTURES))))
    results = {r.id: r for r in engine.run(requests)}
    assert [results[str(n)].status for n in range(len(wrong))] == ["error"] * len(wrong)
    assert "room for 24" in (results["4"].error or "")
    assert results["good"].captured is not None
    assert results["good"].captured.shape == (CAPTURES, engine.info.layers, engine.info.hidden_size)


@on(ONE)
def test_a_loop_left_early_leaves_no_capture_behind(engine: VllmEngine) -> None:
    prompt = Prompt.plain(range(40))
    for _ in engine.run(Request(str(n), prompt, max_tokens=30, capture=(n,)) for n in range(30)):
        break
    results = list(engine.run([Request(str(n), prompt, capture=(n, 39)) for n in range(30)]))
    assert {r.id: r.captured is not None for r in results} == {str(n): True for n in range(30)}
    again = next(iter(engine.run([Request("alone", prompt, capture=(39,))]))).captured
    assert again is not None
    for result in results:
        assert result.captured is not None
        np.testing.assert_allclose(result.captured[1], again[0], rtol=1e-4, atol=1e-4)


@on(*(setup for setup in MATRIX if not setup.captures))
def test_an_engine_without_room_captures_nothing(engine: VllmEngine) -> None:
    (result,) = engine.run([Request("r", Prompt.plain(range(9)), capture=(2,))])
    assert result.status == "error"
    assert "room for 0" in (result.error or "")


def spec(key: int, *positions: int) -> dict[str, dict[str, object]]:
    return CaptureSpec(key, positions).as_extra_args()


def test_a_step_captures_each_position_where_it_is_processed() -> None:
    table = CaptureTable(4)
    table.add("a", spec(1, 2, 5))
    table.add("b", None)
    table.add("c", spec(3, 0))
    # b: 3 tokens from 7; a: positions 0 to 3; c: positions 0 and 1
    assert table.choose(["b", "a", "c"], np.array([7, 0, 0]), np.array([3, 4, 2])) == [5, 7]
    table.take(np.array([[[10.0], [20.0]]], np.float32))
    assert table.choose(["a", "c"], np.array([4, 2]), np.array([2, 1])) == [1]
    table.take(np.array([[[30.0]]], np.float32))
    (a, c) = table.collect([1, 3])
    assert {position: float(x[0, 0]) for position, x in a.items()} == {2: 10.0, 5: 30.0}
    assert {position: float(x[0, 0]) for position, x in c.items()} == {0: 20.0}
    assert table.collect([1]) == [{}]


def test_a_preempted_request_captures_again_and_keeps_what_it_had() -> None:
    table = CaptureTable(4)
    table.add("a", spec(1, 2, 5))
    table.choose(["a"], np.array([0]), np.array([4]))
    table.take(np.array([[[1.0]]], np.float32))
    table.remove("a")
    table.add("a", spec(1, 2, 5))
    assert table.choose(["a"], np.array([3]), np.array([4])) == [2]
    table.take(np.array([[[2.0]]], np.float32))
    assert sorted(table.collect([1])[0]) == [2, 5]


def test_what_was_not_written_or_not_taken_is_a_fault() -> None:
    table = CaptureTable(1)
    table.add("a", spec(1, 0))
    table.add("b", spec(2, 0))
    with pytest.raises(SteeringFault, match="has 1 slots"):
        table.choose(["a", "b"], np.array([0, 0]), np.array([1, 1]))
    table = CaptureTable(1)
    table.add("a", spec(1, 0))
    table.choose(["a"], np.array([0]), np.array([1]))
    with pytest.raises(SteeringFault, match="before what the step before captured"):
        table.choose(["a"], np.array([1]), np.array([1]))
    with pytest.raises(SteeringFault, match="not finite"):
        table.take(np.array([[[np.nan]]], np.float32))
    with pytest.raises(SteeringFault, match="do not fit"):
        table.add("c", spec(3, 0, 1))


@pytest.mark.parametrize(
    "malformed",
    [
        {},
        7,
        {"key": 1},
        {"key": "1", "positions": [1]},
        {"key": 1, "positions": []},
        {"key": 1, "positions": [2, 1]},
        {"key": 1, "positions": [-1]},
        {"key": 1, "positions": 3},
    ],
)
def test_a_malformed_capture_is_a_fault(malformed: object) -> None:
    with pytest.raises(SteeringFault, match="malformed capture"):
        CaptureSpec.from_extra_args({"vsteer_capture": malformed})


def test_blocks_from_the_first_captured_position_on_are_nobody_elses() -> None:
    class Params:
        extra_args = spec(5, 40, 60)

    class PromptRenderer:
        sampling_params = Params()

    # blocks of 16: position 40 lies in the block that ends before 48
    assert [block_keys(PromptRenderer(), end) for end in (16, 32, 40)] == [(), (), ()]
    assert [block_keys(PromptRenderer(), end) for end in (41, 48, 64)] == [(("vsteer", "capture:5"),)] * 3
