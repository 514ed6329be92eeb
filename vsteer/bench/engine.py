"""`vsteer bench engine`: what steering costs, and what sharing prefixes gives.

Three engines stand beside each other and are measured in turn: ours, ours without prefix sharing, and
stock vLLM without our plugin and without a prefix cache; then a Hugging Face loop on the same prompts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vsteer.bench.figures import Figure, as_lines, median_ratio, rates_in_turn
from vsteer.engine.driver import EngineOptions, VllmEngine
from vsteer.engine.reference import ReferenceEngine
from vsteer.engine.request import Positions, Prompt, Request, Steering, Term, Vectors
from vsteer.engine.stock import StockEngine
from vsteer.engine.table import Capacity

VECTOR = "random"
CONFIGURATIONS = 60
MANY = 512
ANSWERS = (10, 11)  # any two tokens: an evaluation reads two log-probabilities


@dataclass(frozen=True)
class Size:
    """How much is measured: all of it, or about a minute's worth."""

    rounds: int
    decode_tokens: int
    # prompts a round, with sharing and without
    shared_prompts: int
    plain_prompts: int
    # steered `all` shares nothing, so it is measured on fewer
    all_prompts: int
    hf_prompts: int


FULL = Size(rounds=5, decode_tokens=32, shared_prompts=40, plain_prompts=4, all_prompts=4, hf_prompts=8)
QUICK = Size(rounds=3, decode_tokens=12, shared_prompts=6, plain_prompts=1, all_prompts=1, hf_prompts=2)


@dataclass(frozen=True)
class Scenario:
    """A shape of prompts with the positions that are steered on them, and what is to be reached."""

    name: str
    positions: Positions
    lengths: tuple[int, int]
    sharing_target: float
    hf_target: float


SCENARIOS = (
    Scenario("129 tokens, last token", "last_prompt_token", (129, 129), 20.0, 15.0),
    Scenario("60-250 tokens, after_prompt", "after_prompt", (60, 250), 4.0, 4.0),
    Scenario("60-250 tokens, all", "all", (60, 250), 0.95, 1.0),
)


def bench_engine(model: str, quick: bool, tell: Callable[[str], None]) -> list[Figure]:
    size = QUICK if quick else FULL
    options = EngineOptions(dtype="bfloat16", max_model_len=512, max_num_seqs=MANY, kv_cache_gib=2)
    capacity = Capacity.for_grid(cells=MANY, rows=128, terms=1)
    tell("starting vsteer's engine (the first start compiles, about 75 s)")
    ours = VllmEngine(model, options=options, capacity=capacity)
    tell("starting it without prefix sharing")
    unshared = VllmEngine(model, options=replace(options, prefix_caching=False), capacity=capacity)
    tell("starting stock vLLM")
    stock = StockEngine(model, replace(options, prefix_caching=False))
    try:
        rng = np.random.default_rng(0)
        directions = rng.standard_normal((ours.layers, ours.hidden_size)).astype(np.float32)
        vectors: Vectors = {VECTOR: dict(enumerate(directions))}
        tell("decode throughput")
        figures = _decode(ours, stock, vectors, size)
        tell(as_lines(figures))
        for scenario in SCENARIOS:
            tell(scenario.name)
            new = _sharing(scenario, ours, unshared, stock, vectors, size)
            tell(as_lines(new))
            figures += new
    finally:
        for engine in (ours, unshared, stock):
            engine.close()
    tell("the Hugging Face loop")
    reference = ReferenceEngine(model, dtype="bfloat16")
    reference.load(vectors, [])
    for scenario in SCENARIOS:
        figures += _hugging_face(scenario, reference, figures, size)
    return figures


def _decode(ours: VllmEngine, stock: StockEngine, vectors: Vectors, size: Size) -> list[Figure]:
    """Throughput of generated tokens: steered over stock, and many configurations over one."""
    one = [_steering(0, ours.layers)]
    many = _configurations(MANY, ours.layers)
    ours.load(vectors, many)

    def requests(count: int, round_: int, steerings: Sequence[Steering | None]) -> list[Request]:
        prompts = _prompts(count, (16, 16), seed=1000 + round_)
        return [
            Request(
                str(i),
                prompt,
                steerings[i % len(steerings)],
                max_tokens=size.decode_tokens,
                ignore_eos=True,
            )
            for i, prompt in enumerate(prompts)
        ]

    def tokens_per_second(
        engine: Any, count: int, steerings: Sequence[Steering | None]
    ) -> Callable[[int], float]:
        def measure(round_: int) -> float:
            return _rate(engine, requests(count, round_, steerings)) * size.decode_tokens

        return measure

    batch = 128
    steered, plain = rates_in_turn(
        size.rounds + 1, tokens_per_second(ours, batch, one), tokens_per_second(stock, batch, [None])
    )
    distinct, same = rates_in_turn(
        size.rounds, tokens_per_second(ours, MANY, many), tokens_per_second(ours, MANY, one)
    )
    # the first round warms both engines up
    return [
        Figure(
            "decode: steered over stock vLLM",
            median_ratio(steered[1:], plain[1:]),
            0.98,
            0.95,
            f"{statistics.median(steered[1:]):.0f} and {statistics.median(plain[1:]):.0f} tokens/s",
        ),
        Figure(
            f"decode: {MANY} configurations over 1",
            median_ratio(distinct, same),
            0.95,
            note=f"{statistics.median(distinct):.0f} tokens/s",
        ),
    ]


def _sharing(
    scenario: Scenario,
    ours: VllmEngine,
    unshared: VllmEngine,
    stock: StockEngine,
    vectors: Vectors,
    size: Size,
) -> list[Figure]:
    steerings = _configurations(CONFIGURATIONS, ours.layers, scenario.positions)
    ours.load(vectors, steerings)
    unshared.load(vectors, steerings)
    everywhere = scenario.positions == "all"
    shared_prompts = size.all_prompts if everywhere else size.shared_prompts

    def evaluations(engine: Any, count: int, steered: bool) -> Callable[[int], float]:
        def measure(round_: int) -> float:
            # fresh prompts every round: nothing may be found from the round before
            prompts = _prompts(
                shared_prompts, scenario.lengths, seed=100 * SCENARIOS.index(scenario) + round_
            )
            return _rate(engine, _evaluations(prompts[:count], steerings if steered else None))

        return measure

    measures = [
        evaluations(ours, shared_prompts, True),
        evaluations(stock if everywhere else unshared, size.plain_prompts, not everywhere),
    ]
    with_sharing, without = rates_in_turn(size.rounds, *measures)
    rival = "stock vLLM without cache" if everywhere else "no sharing"
    return [
        Figure(
            f"{scenario.name}: over {rival}",
            median_ratio(with_sharing, without),
            scenario.sharing_target,
            note=f"{statistics.median(with_sharing):.1f} and {statistics.median(without):.1f} evaluations/s",
        ),
        Figure(f"{scenario.name}: evaluations/s", statistics.median(with_sharing)),
    ]


def _hugging_face(
    scenario: Scenario, reference: ReferenceEngine, figures: Sequence[Figure], size: Size
) -> list[Figure]:
    prompts = _prompts(size.hf_prompts, scenario.lengths, seed=100 * SCENARIOS.index(scenario))
    steering = _steering(0, reference.layers, scenario.positions)
    requests = _evaluations(prompts, [steering])
    _rate(reference, requests[:1])
    rate = _rate(reference, requests)
    ours = next(f.value for f in figures if f.name == f"{scenario.name}: evaluations/s")
    return [
        Figure(
            f"{scenario.name}: over a Hugging Face loop",
            ours / rate,
            scenario.hf_target,
            note=f"{rate:.1f} evaluations/s one by one",
        )
    ]


def _rate(engine: Any, requests: Sequence[Request]) -> float:
    start = time.perf_counter()
    done = sum(1 for _ in engine.run(requests))
    assert done == len(requests)
    return done / (time.perf_counter() - start)


def _prompts(count: int, lengths: tuple[int, int], seed: int) -> list[Prompt]:
    """Random tokens: throughput does not depend on what they say."""
    rng = np.random.default_rng(seed)
    return [
        Prompt.plain(int(t) for t in rng.integers(100, 40_000, int(rng.integers(lengths[0], lengths[1] + 1))))
        for _ in range(count)
    ]


def _evaluations(prompts: Sequence[Prompt], steerings: Sequence[Steering] | None) -> list[Request]:
    """Every configuration of a prompt, prompt by prompt."""
    return [
        Request(f"{p}/{s}", prompt, steering, logprob_token_ids=ANSWERS)
        for p, prompt in enumerate(prompts)
        for s, steering in enumerate(steerings or [None] * CONFIGURATIONS)
    ]


def _steering(index: int, layers: int, positions: Positions = "all") -> Steering:
    """Configuration `index` of a sweep: the layers in turn, another multiplier each time round."""
    return Steering((Term(VECTOR, index % layers, 0.01 * (1 + index // layers)),), positions)


def _configurations(count: int, layers: int, positions: Positions = "all") -> list[Steering]:
    return [_steering(index, layers, positions) for index in range(count)]
