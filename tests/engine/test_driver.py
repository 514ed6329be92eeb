"""The vLLM engine as other code sees it: what it answers, what it counts, what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.engine.conftest import BLOCK, MAX_MODEL_LEN, ONE, on
from vsteer import models
from vsteer.engine import driver
from vsteer.engine.driver import VllmEngine
from vsteer.engine.proof.parity import TOLERANCE, make_vectors
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.errors import EngineError, SteeringFault, UsageError, VectorError, VsteerError
from vsteer.protocol import Positions, Prompt, Request, Result, Steering, Term, Vectors

on_the_engine = on(ONE)
TERMS = (Term("first", 2, 1.0),)
OTHER_TERMS = (Term("second", 3, -2.0),)
PROBES = tuple(range(100, 132))


@pytest.fixture(scope="module")
def vectors(reference: ReferenceEngine) -> Vectors:
    return make_vectors(reference)


@pytest.fixture
def loaded(engine: VllmEngine, reference: ReferenceEngine, vectors: Vectors) -> VllmEngine:
    """The engine, and the reference, with the steerings of TERMS and OTHER_TERMS."""
    for each in (engine, reference):
        each.load(vectors, [Steering(TERMS), Steering(OTHER_TERMS)])
    return engine


def tokens(count: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(int(token) for token in np.random.default_rng(seed).integers(3, 259, count))


def ask(name: str, steering: Steering | None = None, **kwargs: Any) -> Request:
    defaults: dict[str, Any] = {
        "prompt": Prompt.plain(tokens(10)),
        "max_tokens": 4,
        "ignore_eos": True,
        "logprob_token_ids": PROBES,
    }
    return Request(name, steering=steering, **{**defaults, **kwargs})


def serve(engine: VllmEngine | ReferenceEngine, *requests: Request) -> dict[str, Result]:
    return {result.id: result for result in engine.run(requests)}


def same(a: Result, b: Result) -> bool:
    return a.token_ids == b.token_ids and all(
        abs(left[token] - right[token]) <= TOLERANCE
        for left, right in zip(a.logprobs, b.logprobs, strict=True)
        for token in PROBES
    )


# --- what comes back


@on_the_engine
def test_a_bad_prompt_fails_alone(loaded: VllmEngine, reference: ReferenceEngine) -> None:
    size = loaded.info.vocab_size
    bad = {
        "the prompt is empty": ask("empty", prompt=Prompt.plain(())),
        f"too long: 300 prompt tokens + 4 to generate exceed max_model_len {MAX_MODEL_LEN}": ask(
            "long", Steering(TERMS), prompt=Prompt.plain(tokens(300))
        ),
        f"too long: {MAX_MODEL_LEN} prompt tokens + 1": ask(
            "full", prompt=Prompt.plain(tokens(MAX_MODEL_LEN)), max_tokens=1
        ),
        f"token id {size} is outside": ask("above", prompt=Prompt.plain((5, size))),
        "token id -1 is outside": ask("below", prompt=Prompt.plain((-1, 5))),
        f"token id {size + 7} is outside": ask("probe", logprob_token_ids=(size + 7,)),
        "max_tokens is 0": ask("nothing", max_tokens=0),
    }
    good = [ask("plain"), ask("steered", Steering(TERMS)), ask("other", Steering(OTHER_TERMS, (3, 7)))]
    # the longest that fits
    good.append(ask("fits", prompt=Prompt.plain(tokens(MAX_MODEL_LEN - 4, seed=1))))

    results = serve(loaded, *good[:1], *bad.values(), *good[1:])

    assert len(results) == len(bad) + len(good)
    for reason, request in bad.items():
        result = results[request.id]
        assert result.status == "error"
        assert result.error is not None
        assert result.error.startswith(reason)
        assert (result.token_ids, result.logprobs) == ((), ())
    expected = serve(reference, *good)
    for request in good:
        assert results[request.id].status == "ok"
        assert same(results[request.id], expected[request.id])


@on_the_engine
def test_the_reference_engine_gives_the_same_error_for_a_bad_prompt(
    loaded: VllmEngine, reference: ReferenceEngine
) -> None:
    bad = [
        ask("empty", prompt=Prompt.plain(())),
        ask("above", prompt=Prompt.plain((5, loaded.info.vocab_size))),
        ask("nothing", max_tokens=0),
    ]
    assert serve(loaded, *bad) == serve(reference, *bad)


@on_the_engine
def test_results_stream_and_few_requests_are_in_flight(
    loaded: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_flight, collected = 8, 4
    monkeypatch.setattr(loaded, "_max_in_flight", in_flight)
    monkeypatch.setattr(driver, "COLLECT_RESULTS", collected)
    pulled = 0

    def requests() -> Iterator[Request]:
        nonlocal pulled
        for index in range(80):
            pulled += 1
            yield ask(f"{index}", Steering(TERMS) if index % 2 else None, max_tokens=1 + index % 3)

    ahead = []
    for done, _ in enumerate(loaded.run(requests())):
        ahead.append(pulled - done)

    assert len(ahead) == 80
    # those that run, those that wait to be collected, and those that finished in one step
    assert max(ahead) <= in_flight + collected + in_flight


@on_the_engine
def test_leaving_early_leaves_a_usable_engine(
    loaded: VllmEngine, vectors: Vectors, reference: ReferenceEngine
) -> None:
    requests = [ask(f"{index}", Steering(TERMS), max_tokens=20 + index) for index in range(50)]
    for result in loaded.run(requests):
        assert result.status == "ok"
        break
    # a table is replaced only where no steered request is under way
    loaded.load(vectors, [Steering(OTHER_TERMS)])
    reference.load(vectors, [Steering(OTHER_TERMS)])
    # the same names again: nothing of the first ones is left
    again = [dataclasses.replace(request, steering=Steering(OTHER_TERMS)) for request in requests[:10]]
    results, expected = serve(loaded, *again), serve(reference, *again)
    assert results.keys() == expected.keys()
    assert all(same(results[name], expected[name]) for name in expected)


@on_the_engine
def test_an_error_of_the_callers_leaves_a_usable_engine(loaded: VllmEngine) -> None:
    def requests() -> Iterator[Request]:
        for index in range(20):
            yield ask(f"{index}", Steering(TERMS), max_tokens=50)
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="own"):
        list(loaded.run(requests()))
    with pytest.raises(UsageError, match="unknown positions"):
        list(loaded.run([ask("a", Steering(TERMS)), ask("b", Steering(TERMS, "after_promt"))]))
    assert serve(loaded, ask("a", Steering(TERMS)))["a"].status == "ok"


@on_the_engine
def test_two_requests_of_one_name(loaded: VllmEngine) -> None:
    twins = [ask("twin", max_tokens=30), ask("twin", Steering(TERMS), max_tokens=30)]
    with pytest.raises(SteeringFault, match="both named 'twin'"):
        list(loaded.run(twins))
    # one after the other is fine
    assert not same(serve(loaded, twins[0])["twin"], serve(loaded, twins[1])["twin"])


@on_the_engine
def test_a_steering_that_was_not_loaded(loaded: VllmEngine) -> None:
    with pytest.raises(SteeringFault, match="was not given"):
        list(loaded.run([ask("a", Steering((Term("third", 1, 1.0),)))]))


# --- steering


@on_the_engine
def test_a_multiplier_of_0_is_unsteered(loaded: VllmEngine) -> None:
    zero = Steering((Term("first", 2, 0.0), Term("second", 1, -0.0)))
    # one at a time: the same work gives the same numbers to the last bit
    plain = serve(loaded, ask("a", prompt=Prompt.plain(tokens(10, seed=2))))["a"]
    by_zero = serve(loaded, ask("a", zero, prompt=Prompt.plain(tokens(10, seed=2))))["a"]
    assert by_zero == plain
    assert by_zero.steered_tokens == 0


@on_the_engine
def test_generated_does_not_move_the_first_token(loaded: VllmEngine) -> None:
    plain = serve(loaded, ask("a"))["a"].logprobs
    moved = serve(loaded, ask("a", Steering(TERMS, "generated")))["a"].logprobs
    by_position = [
        max(abs(a[token] - b[token]) for token in PROBES) for a, b in zip(plain, moved, strict=True)
    ]
    assert by_position[0] <= TOLERANCE
    assert by_position[1] > 100 * TOLERANCE


# 10 prompt tokens of which 8 are the template and 5 the user's turn, and 4 new ones: positions 0 to 12 are
# processed, for the last new token is never fed back.
@on_the_engine
@pytest.mark.parametrize(
    ("positions", "steered"),
    [
        ("all", 13),
        ("after_prompt", 13 - 7),
        ("after_user_turn", 13 - 4),
        ("last_prompt_token", 1),
        ("generated", 3),
        ((2, 5), 3),
        ((0, 1), 1),
        ((11, 100), 2),
        ((12, 13), 1),
        ((13, 20), 0),
        ((50, 60), 0),
    ],
    ids=str,
)
def test_steered_tokens(
    loaded: VllmEngine, reference: ReferenceEngine, positions: Positions, steered: int
) -> None:
    request = ask("a", Steering(TERMS, positions), prompt=Prompt(tokens(10), 8, 5))
    for engine in (loaded, reference):
        result = serve(engine, request)["a"]
        assert result.steered_tokens == steered
        assert (result.prompt_tokens, len(result.token_ids)) == (10, 4)
        alone = serve(engine, dataclasses.replace(request, max_tokens=1))["a"]
        last = 9
        start, end = request.prompt.span(positions)
        assert alone.steered_tokens == max(0, min(end, last + 1) - start)


@on_the_engine
def test_cached_tokens(loaded: VllmEngine) -> None:
    prompt = Prompt.plain(tokens(2 * BLOCK + 6, seed=3))

    def cached(steering: Steering | None) -> int:
        return serve(loaded, ask("a", steering, prompt=prompt))["a"].cached_tokens

    assert cached(None) == 0
    assert cached(None) == 2 * BLOCK
    late = Steering(TERMS, (BLOCK + 8, BLOCK + 9))
    assert cached(late) == BLOCK  # its first block is everyone's
    assert cached(late) == 2 * BLOCK
    assert cached(Steering(TERMS, (BLOCK + 8, BLOCK + 10))) == BLOCK
    assert cached(Steering(OTHER_TERMS, late.positions)) == BLOCK
    assert cached(Steering(TERMS, "after_prompt")) == 2 * BLOCK
    assert cached(Steering(TERMS, "all")) == 0
    assert cached(Steering(TERMS, "all")) == 2 * BLOCK
    # the span starts with the third block, behind all that can be shared
    assert cached(Steering(OTHER_TERMS, (2 * BLOCK, 2 * BLOCK + 1))) == 2 * BLOCK
    assert cached(Steering(OTHER_TERMS, (2 * BLOCK - 1, 2 * BLOCK + 1))) == BLOCK


@on_the_engine
def test_a_cached_span_counts_as_steered(loaded: VllmEngine, reference: ReferenceEngine) -> None:
    request = ask("a", Steering(TERMS, (1, 40)), prompt=Prompt.plain(tokens(3 * BLOCK, seed=4)))
    first, second = (serve(loaded, request)["a"] for _ in range(2))
    assert (first.cached_tokens, second.cached_tokens) == (0, 2 * BLOCK)
    assert first.steered_tokens == second.steered_tokens == 39
    assert same(first, second)
    assert same(first, serve(reference, request)["a"])


# --- text


@on_the_engine
def test_a_stop_string(loaded: VllmEngine, reference: ReferenceEngine) -> None:
    steering = Steering(TERMS, "all")
    whole = serve(loaded, ask("a", steering, max_tokens=24))["a"]
    assert (whole.finish_reason, len(whole.token_ids)) == ("length", 24)
    stop = whole.text[10:13]
    request = ask("a", steering, max_tokens=24, stop=("never in there", stop))
    cut, expected = serve(loaded, request)["a"], serve(reference, request)["a"]
    assert cut.finish_reason == expected.finish_reason == "stop"
    assert cut.text == expected.text == whole.text[: whole.text.index(stop)]
    assert cut.token_ids == expected.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert cut.steered_tokens == expected.steered_tokens == 10 + len(cut.token_ids) - 1


@on_the_engine
def test_the_end_of_a_text_ends_it(loaded: VllmEngine, reference: ReferenceEngine) -> None:
    requests = [
        ask(f"{seed}", max_tokens=64, temperature=2.0, seed=seed, ignore_eos=False) for seed in range(100)
    ]
    ended = 0
    for result in serve(loaded, *requests).values():
        assert result.status == "ok"
        assert not reference.eos & set(result.token_ids[:-1])
        assert (result.finish_reason == "stop") == (result.token_ids[-1] in reference.eos)
        ended += result.finish_reason == "stop"
    assert 0 < ended < 100


@on_the_engine
def test_sampling_repeats_by_its_seed(loaded: VllmEngine) -> None:
    def sampled(seed: int, *mates: Request) -> tuple[int, ...]:
        request = ask("a", Steering(TERMS), temperature=1.0, top_p=0.9, seed=seed, max_tokens=12)
        return serve(loaded, *mates, request)["a"].token_ids

    # long mates, so that in their company the prompt is prefilled in chunks
    mates = [
        ask(
            f"mate {index}", prompt=Prompt.plain(tokens(70, index)), temperature=1.0, seed=index, max_tokens=8
        )
        for index in range(8)
    ]
    assert sampled(7) == sampled(7) == sampled(7, *mates) == sampled(7, *mates[:5])
    assert sampled(7) != sampled(8)


@on_the_engine
def test_sampling_repeats_after_preemption(loaded: VllmEngine, vectors: Vectors) -> None:
    loaded.load(vectors, [Steering(TERMS)])
    requests = [
        ask(
            f"{index}",
            Steering(TERMS),
            prompt=Prompt.plain(tokens(40 + index, index)),
            temperature=1.0,
            seed=index,
            max_tokens=60,
        )
        for index in range(16)
    ]
    together = serve(loaded, *requests)
    assert loaded.recomputed_tokens() > 0
    alike = [
        serve(loaded, request)[request.id].token_ids == together[request.id].token_ids for request in requests
    ]
    # of a thousand draws one may fall between two tokens, where rounding decides
    assert sum(alike) >= len(alike) - 1


@on_the_engine
def test_vllm_s_own_refusal_fails_one_request(loaded: VllmEngine) -> None:
    results = serve(loaded, ask("hot", temperature=5.0), ask("plain"))
    assert results["hot"].error is not None
    assert results["hot"].error.startswith("vLLM refuses it: temperature must be in [0, 2]")
    assert results["plain"].status == "ok"


# --- what is refused: see test_refused_starts.py too


@on_the_engine
@pytest.mark.parametrize(
    ("steering", "error", "message", "hint"),
    [
        (Steering((Term("first", 6, 1.0),)), UsageError, "layer 6 does not exist", "layers 0 to 5"),
        (Steering((Term("frist", 1, 1.0),)), VectorError, "no vector is named 'frist'", "first"),
        (Steering((Term("wide", 1, 1.0),)), VectorError, "has width 129", "another model"),
        (Steering((Term("holed", 1, 1.0),)), VectorError, "not finite", "finite"),
        (Steering((Term("wide", 2, 1.0),)), VectorError, "no direction for layer 2", "layers 1 to 1"),
        (Steering((Term("first", 1, float("nan")),)), UsageError, "not a finite", "plain number"),
        (Steering((Term("first", 1, 1e39),)), UsageError, "not a finite", "plain number"),
        (Steering(4 * (Term("first", 1, 1.0),)), EngineError, "table is full: 4 terms", "Capacity"),
    ],
    ids=["layer", "name", "width", "nan", "gap", "multiplier", "overflow", "terms"],
)
def test_a_bad_steering_is_refused_and_the_old_table_stays(
    loaded: VllmEngine,
    vectors: Vectors,
    steering: Steering,
    error: type[VsteerError],
    message: str,
    hint: str,
) -> None:
    holed = np.ones(128, np.float32)
    holed[5] = np.nan
    more = {**vectors, "wide": {1: np.ones(129, np.float32)}, "holed": {1: holed}}
    with pytest.raises(error) as refusal:
        loaded.load(more, [Steering(TERMS), steering])
    assert message in refusal.value.message
    assert hint in refusal.value.hint
    assert serve(loaded, ask("a", Steering(OTHER_TERMS)))["a"].steered_tokens == 13


@on_the_engine
def test_a_full_table(loaded: VllmEngine, vectors: Vectors) -> None:
    room = loaded.capacity.cells - 1
    steerings = [Steering((Term("first", 0, 1.0 + index),)) for index in range(room + 1)]
    with pytest.raises(
        EngineError, match=f"full: {room + 2} cells are needed and there is room for {room + 1}"
    ):
        loaded.load(vectors, steerings)
    loaded.load(vectors, steerings[:room])
    assert serve(loaded, ask("a", steerings[room - 1]))["a"].steered_tokens == 13


# --- beside us


@pytest.mark.engine
def test_an_engine_that_is_not_ours_is_stock_vllm(reference: ReferenceEngine) -> None:
    """The plugin is loaded in every vLLM of this Python; without our section it changes nothing."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.inputs import TokensPrompt
    from vllm.v1.engine.llm_engine import LLMEngine

    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=models.resolve("tiny-llama").model,
            dtype="float32",
            max_model_len=64,
            enforce_eager=True,
            kv_cache_memory_bytes=2**26,
            worker_extension_cls="vsteer.engine.worker.extension.SteeringWorker",
        )
    )
    try:
        with pytest.raises(Exception, match="runs a model without steering"):
            engine.collective_rpc("vsteer_recomputed")
        prompt = tokens(10)
        engine.add_request(
            "a",
            TokensPrompt(prompt_token_ids=list(prompt)),
            SamplingParams(temperature=0, max_tokens=4, ignore_eos=True),
        )
        outputs: list[Any] = []
        while engine.has_unfinished_requests():
            outputs += engine.step()
        assert tuple(outputs[-1].outputs[0].token_ids) == serve(reference, ask("a"))["a"].token_ids
    finally:
        engine.engine_core.shutdown()
