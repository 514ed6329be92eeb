"""`vsteer bench forks`: questions with given answers as forks of one unsteered pass, over requests.

One engine computes the same rows both ways, in turn. Beside them stand a Hugging Face loop and the share of
the machine's own bfloat16 matrix products that the forks reach, which says what is left to win.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from vsteer.bench.figures import Figure, as_lines, median_ratio, rates_in_turn
from vsteer.bench.hugging_face import HuggingFaceProcess
from vsteer.bench.made_up import ANSWERS, VECTOR, chat_prompts, random_vectors
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.engine.table import Capacity
from vsteer.errors import EngineError
from vsteer.protocol import Block, Positions, Prompt, Request, Steering, Term, Vectors

DTYPE = "bfloat16"
CONFIGURATIONS = 1200
# Rows, inner and outer width of the products by which the machine is measured: those of a large batch's MLP.
PRODUCT = (2048, 576, 1536)


@dataclass(frozen=True)
class Scenario:
    """Which tokens and layers are steered, by how many configurations a prompt, and what is to be reached."""

    name: str
    positions: Positions
    configurations: int
    layers: tuple[float, float]  # from which depth to which
    target: float


SCENARIOS = (
    Scenario("one token", "last_prompt_token", CONFIGURATIONS, (0.0, 1.0), 8.0),
    Scenario("after_prompt, forced prefix", "after_prompt", CONFIGURATIONS, (0.0, 1.0), 5.0),
    Scenario("every token", "all", 60, (0.0, 1.0), 1.8),
    Scenario("every token, upper half", "all", 60, (0.5, 1.0), 3.3),
)


def bench_forks(model: str, quick: bool, on_progress: Callable[[str], None]) -> list[Figure]:
    rounds = 2 if quick else 5
    options = EngineOptions(max_model_len=512, kv_cache_gib=2, forks=True)
    capacity = Capacity.for_grid(cells=CONFIGURATIONS, rows=128, terms=1)
    on_progress("starting the engine and the Hugging Face loop (the first start compiles)")
    figures: list[Figure] = []
    with ExitStack() as stack:
        engine = stack.enter_context(
            closing(VllmEngine(model, dtype=DTYPE, options=options, capacity=capacity))
        )
        vectors = random_vectors(engine.info)
        loop = stack.enter_context(closing(HuggingFaceProcess(model, vectors)))
        machine = statistics.median(loop(_products) for _ in range(5))
        on_progress(f"the machine's bfloat16 products: {machine / 1e9:.0f} GFLOP/s")
        for scenario in SCENARIOS:
            on_progress(scenario.name)
            new = _measured(scenario, engine, loop, vectors, machine, rounds, quick)
            on_progress(as_lines(new))
            figures += new
    return figures


def _measured(
    scenario: Scenario,
    engine: VllmEngine,
    loop: HuggingFaceProcess,
    vectors: Vectors,
    machine: float,
    rounds: int,
    quick: bool,
) -> list[Figure]:
    steerings = _steerings(scenario, engine.info.layers, scenario.configurations // (4 if quick else 1))
    engine.load(vectors, steerings)
    count = 1 if len(steerings) > 100 else 2

    def prompts(round_: int) -> list[Prompt]:
        return chat_prompts(count, 100 * SCENARIOS.index(scenario) + round_)

    def rows(round_: int) -> list[Request]:
        return [
            Request(f"{p}/{s}", prompt, steering, logprob_token_ids=ANSWERS)
            for p, prompt in enumerate(prompts(round_))
            for s, steering in enumerate(steerings)
        ]

    def forks(round_: int) -> float:
        blocks = [
            Block(str(p), prompt, (((), ANSWERS),), tuple(steerings))
            for p, prompt in enumerate(prompts(round_))
        ]
        start = time.perf_counter()
        found = [scores for _, scores in engine.run_blocks(blocks)]
        rate = sum(len(scores.logprobs) for scores in found) / (time.perf_counter() - start)
        if not all(scores.forked for scores in found):
            raise EngineError("the engine did not compute these rows as forks", hint="see vsteer doctor")
        return rate

    def requests(round_: int) -> float:
        return _rate(engine, rows(round_))

    def one_by_one(round_: int) -> float:
        return loop(_rate, rows(round_)[:: max(1, len(steerings) // 4)])

    # a first round warms both up
    forked, requested, single = (
        rates[1:] for rates in rates_in_turn(rounds + 1, forks, requests, one_by_one)
    )
    layer, head = loop(_parameters)
    shares = [
        rate * _operations(rows(round_), engine.info.layers, layer, head) / len(rows(round_)) / machine
        for round_, rate in enumerate(forked, start=1)
    ]
    rate = statistics.median(forked)
    return [
        Figure(
            f"{scenario.name}: forks over requests",
            median_ratio(forked, requested),
            scenario.target,
            note=f"{rate:.0f} and {statistics.median(requested):.0f} rows/s",
        ),
        Figure(
            f"{scenario.name}: forks over a Hugging Face loop",
            median_ratio(forked, single),
            note=f"{statistics.median(single):.1f} rows/s",
        ),
        Figure(
            f"{scenario.name}: share of the machine's products",
            statistics.median(shares),
            note=f"{statistics.median(shares) * machine / 1e9:.0f} GFLOP/s",
        ),
    ]


def _steerings(scenario: Scenario, layers: int, count: int) -> list[Steering]:
    """The scenario's layers in turn, another multiplier each time round."""
    low, high = (round(depth * layers) for depth in scenario.layers)
    here = range(low, high)
    return [
        Steering((Term(VECTOR, here[n % len(here)], 0.01 * (1 + n // len(here))),), scenario.positions)
        for n in range(count)
    ]


def _rate(engine: VllmEngine | ReferenceEngine, requests: Sequence[Request]) -> float:
    start = time.perf_counter()
    done = sum(1 for _ in engine.run(requests))
    assert done == len(requests)
    return done / (time.perf_counter() - start)


def _operations(rows: Sequence[Request], layers: int, layer: int, head: int) -> float:
    """Multiplications and additions with weights: each fork has those of its own tokens behind its layer, but
    in the last layer only its last token's."""
    found = 0
    for row in rows:
        assert row.steering is not None
        start, _ = row.prompt.span(row.steering.positions)
        above = layers - 1 - row.steering.terms[0].layer
        own = len(row.prompt.token_ids) - start
        found += (own * max(0, above - 1) + min(1, above)) * layer + head
    for prompt in {row.prompt.token_ids for row in rows}:
        found += len(prompt) * layers * layer + head
    return 2.0 * found


def _parameters(reference: ReferenceEngine) -> tuple[int, int]:
    """The weights of a layer's matrices, and of the unembedding."""
    layer = sum(one.numel() for one in reference.model.model.layers[0].parameters() if one.ndim == 2)
    return layer, reference.model.get_output_embeddings().weight.numel()


def _products(reference: ReferenceEngine) -> float:
    """The machine's bfloat16 operations a second, in a product of two matrices."""
    import torch

    rows, inner, outer = PRODUCT
    a, b = torch.randn(rows, inner).bfloat16(), torch.randn(inner, outer).bfloat16()
    torch.mm(a, b)
    start = time.perf_counter()
    for _ in range(20):
        torch.mm(a, b)
    return 20 * 2.0 * rows * inner * outer / (time.perf_counter() - start)
