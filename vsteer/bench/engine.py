"""`vsteer bench engine`: what steering costs, and what sharing prefixes gives.

The engines that are compared live side by side and are measured in turn. Decode compares vsteer's engine, one
with ablation in its graph, and stock vLLM without the plugin and without a prefix cache. Sharing compares
vsteer's engine, one without sharing, stock vLLM, and a Hugging Face loop on the same prompts, in a process of
its own, since vLLM leaves its caller with one thread of torch's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from vsteer.bench.figures import Figure, as_lines, median_ratio, rates_in_turn
from vsteer.bench.hugging_face import HuggingFaceProcess
from vsteer.bench.made_up import VECTOR, random_vectors
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.engine.stock import StockEngine
from vsteer.engine.table import Capacity
from vsteer.operations import graph_modules
from vsteer.protocol import Positions, Prompt, Request, Steering, Term, Vectors

DTYPE = "bfloat16"
CONFIGURATIONS = 60
MANY = 512
ANSWERS = (10, 11)  # any two tokens: an evaluation reads two log-probabilities


@dataclass(frozen=True)
class Size:
    """How much is measured: all of it, or about a minute's worth."""

    rounds: int
    # Engines started alike decode up to 10% apart for as long as they live, so decode is measured on several.
    starts: int
    decode_requests: int
    decode_tokens: int
    # How many prompts a round has, with sharing and without.
    shared_prompts: int
    plain_prompts: int
    # Steering `all` shares nothing, so it is measured on fewer.
    all_prompts: int
    hf_prompts: int


FULL = Size(5, 3, 128, 32, shared_prompts=40, plain_prompts=4, all_prompts=4, hf_prompts=4)
QUICK = Size(2, 1, 64, 8, shared_prompts=4, plain_prompts=1, all_prompts=1, hf_prompts=1)
# Rounds of each start, after one that warms the engines up.
DECODE_ROUNDS = 3


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


def bench_engine(
    model: str, quick: bool, on_progress: Callable[[str], None], part: str | None = None
) -> list[Figure]:
    """Measure both parts, or the one that is named."""
    size = QUICK if quick else FULL
    options = EngineOptions(max_model_len=512, max_num_seqs=MANY, kv_cache_gib=2)
    capacity = Capacity.for_grid(cells=MANY, rows=128, terms=1)
    figures: list[Figure] = []
    for name, measure in (("decode", _decode), ("sharing", _sharing)):
        if part in (None, name):
            figures += measure(model, options, capacity, size, on_progress)
    return figures


def _decode(
    model: str, options: EngineOptions, capacity: Capacity, size: Size, on_progress: Callable[[str], None]
) -> list[Figure]:
    """Throughput of generated tokens: steered over stock, unused ablation over none, many over one."""
    ablating = replace(capacity, modules=graph_modules(["ablate"]))
    starters: list[Callable[[], VllmEngine | StockEngine]] = [
        lambda: VllmEngine(model, dtype=DTYPE, options=options, capacity=capacity),
        lambda: VllmEngine(model, dtype=DTYPE, options=options, capacity=ablating),
        lambda: StockEngine(model, DTYPE, options.model_copy(update={"prefix_caching": False})),
    ]
    rates: list[list[list[float]]] = []
    for start in range(size.starts):
        on_progress(
            f"decode, start {start + 1} of {size.starts}: vsteer's engine, one with ablation in its graph, "
            "and stock vLLM (the first start compiles)"
        )
        with ExitStack() as stack:
            engines: dict[int, VllmEngine | StockEngine] = {}
            # Another engine starts first each time.
            for place in range(len(starters)):
                which = (start + place) % len(starters)
                engines[which] = stack.enter_context(closing(starters[which]()))
            rates.append(_decode_rates([engines[which] for which in range(len(starters))], size))
            on_progress(", ".join(f"{statistics.median(rate):.0f}" for rate in rates[-1]) + " tokens/s")
            if start == size.starts - 1:
                ours = engines[0]
                assert isinstance(ours, VllmEngine)
                many = _configurations(MANY, ours.info.layers)
                distinct, same = rates_in_turn(
                    size.rounds,
                    _decode_rate(ours, MANY, many, size),
                    _decode_rate(ours, MANY, many[:1], size),
                )

    def over(one: int, other: int) -> tuple[float, str]:
        ratios = sorted(median_ratio(rate[one], rate[other]) for rate in rates)
        medians = [
            statistics.median(chain.from_iterable(rate[which] for rate in rates)) for which in (one, other)
        ]
        note = f"{medians[0]:.0f} and {medians[1]:.0f} tokens/s; {len(rates)} starts, "
        return statistics.median(ratios), note + f"{ratios[0]:.3f} to {ratios[-1]:.3f}"

    steered, steered_note = over(0, 2)
    unused, unused_note = over(1, 0)
    figures = [
        Figure("decode: steered over stock vLLM", steered, 0.98, 0.95, steered_note),
        Figure("decode: ablation in the graph, unused, over none", unused, 0.97, note=unused_note),
        Figure(
            f"decode: {MANY} configurations over 1",
            median_ratio(distinct, same),
            0.95,
            note=f"{statistics.median(distinct):.0f} tokens/s",
        ),
    ]
    on_progress(as_lines(figures))
    return figures


def _decode_rates(engines: Sequence[VllmEngine | StockEngine], size: Size) -> list[list[float]]:
    """Each engine's tokens a second, vsteer's steered everywhere, after a round that warms them up."""
    measures = []
    for engine in engines:
        steering = None
        if isinstance(engine, VllmEngine):
            steering = _steering(0, engine.info.layers)
            engine.load(random_vectors(engine.info), _configurations(MANY, engine.info.layers))
        measures.append(_decode_rate(engine, size.decode_requests, [steering], size))
    return [rates[1:] for rates in rates_in_turn(DECODE_ROUNDS + 1, *measures)]


def _decode_rate(
    engine: VllmEngine | StockEngine, count: int, steerings: Sequence[Steering | None], size: Size
) -> Callable[[int], float]:
    def measure(round_: int) -> float:
        requests = [
            Request(
                str(i), prompt, steerings[i % len(steerings)], max_tokens=size.decode_tokens, ignore_eos=True
            )
            for i, prompt in enumerate(_prompts(count, (16, 16), seed=1000 + round_))
        ]
        return _rate(engine, requests) * size.decode_tokens

    return measure


def _sharing(
    model: str, options: EngineOptions, capacity: Capacity, size: Size, on_progress: Callable[[str], None]
) -> list[Figure]:
    """Evaluations a second with prefix sharing: over those without, and over a Hugging Face loop."""
    on_progress(
        "starting vsteer's engine with prefix sharing and without, stock vLLM and the Hugging Face loop"
    )
    figures: list[Figure] = []
    with ExitStack() as engines:
        ours = engines.enter_context(
            closing(VllmEngine(model, dtype=DTYPE, options=options, capacity=capacity))
        )
        options = options.model_copy(update={"prefix_caching": False})
        unshared = engines.enter_context(
            closing(VllmEngine(model, dtype=DTYPE, options=options, capacity=capacity))
        )
        stock = engines.enter_context(closing(StockEngine(model, DTYPE, options)))
        vectors = random_vectors(ours.info)
        loop = engines.enter_context(closing(HuggingFaceProcess(model, vectors)))
        on_progress(f"the loop is faster in {loop.dtype} here")
        for scenario in SCENARIOS:
            on_progress(scenario.name)
            new = _shared(scenario, ours, unshared, stock, loop, vectors, size)
            on_progress(as_lines(new))
            figures += new
    return figures


def _shared(
    scenario: Scenario,
    ours: VllmEngine,
    unshared: VllmEngine,
    stock: StockEngine,
    loop: HuggingFaceProcess,
    vectors: Vectors,
    size: Size,
) -> list[Figure]:
    """Evaluations a second: vsteer's, without sharing, and one by one through Hugging Face."""
    steerings = _configurations(CONFIGURATIONS, ours.info.layers, scenario.positions)
    ours.load(vectors, steerings)
    unshared.load(vectors, steerings)
    everywhere = scenario.positions == "all"
    shared_prompts = size.all_prompts if everywhere else size.shared_prompts

    def requests(round_: int, count: int, of: Sequence[Steering | None]) -> list[Request]:
        # The prompts are new in every round, so that nothing is found in the cache.
        seed = 100 * SCENARIOS.index(scenario) + round_
        return _evaluations(_prompts(shared_prompts, scenario.lengths, seed)[:count], of)

    def with_sharing(round_: int) -> float:
        return _rate(ours, requests(round_, shared_prompts, steerings))

    def without(round_: int) -> float:
        if everywhere:
            return _rate(stock, requests(round_, size.plain_prompts, [None] * CONFIGURATIONS))
        return _rate(unshared, requests(round_, size.plain_prompts, steerings))

    def one_by_one(round_: int) -> float:
        # Every configuration takes the same time, so that one is enough.
        return loop(_rate, requests(round_, size.hf_prompts, steerings[:1]))

    shared, plain, single = rates_in_turn(size.rounds, with_sharing, without, one_by_one)
    rate = statistics.median(shared)
    return [
        Figure(
            f"{scenario.name}: over {'stock vLLM without cache' if everywhere else 'no sharing'}",
            median_ratio(shared, plain),
            scenario.sharing_target,
            note=f"{rate:.1f} and {statistics.median(plain):.1f} evaluations/s",
        ),
        Figure(
            f"{scenario.name}: over a Hugging Face loop",
            median_ratio(shared, single),
            scenario.hf_target,
            note=f"{rate:.1f} and {statistics.median(single):.2f} evaluations/s",
        ),
    ]


def _rate(engine: VllmEngine | StockEngine | ReferenceEngine, requests: Sequence[Request]) -> float:
    start = time.perf_counter()
    done = sum(1 for _ in engine.run(requests))
    assert done == len(requests)
    return done / (time.perf_counter() - start)


def _prompts(count: int, lengths: tuple[int, int], seed: int) -> list[Prompt]:
    """Random tokens: throughput doesn't depend on what they mean."""
    rng = np.random.default_rng(seed)
    return [
        Prompt.plain(int(t) for t in rng.integers(100, 40_000, int(rng.integers(lengths[0], lengths[1] + 1))))
        for _ in range(count)
    ]


def _evaluations(prompts: Sequence[Prompt], steerings: Sequence[Steering | None]) -> list[Request]:
    """Every configuration of a prompt, prompt by prompt."""
    return [
        Request(f"{p}/{s}", prompt, steering, logprob_token_ids=ANSWERS)
        for p, prompt in enumerate(prompts)
        for s, steering in enumerate(steerings)
    ]


def _steering(index: int, layers: int, positions: Positions = "all") -> Steering:
    """Configuration `index` of a sweep: the layers in turn, another multiplier each time round."""
    return Steering((Term(VECTOR, index % layers, 0.01 * (1 + index // layers)),), positions)


def _configurations(count: int, layers: int, positions: Positions = "all") -> list[Steering]:
    return [_steering(index, layers, positions) for index in range(count)]
