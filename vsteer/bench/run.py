"""`vsteer bench run`: what the run costs over the bare engine, and whether it stays flat.

The same prompts through `vsteer run`'s loop into a store, steered, and through stock vLLM's `LLM.generate`
with its prefix cache, unsteered, in turn; then the loop with an engine that runs no model; and the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vsteer.bench.figures import Figure, median_ratio, rates_in_turn
from vsteer.bench.store import bench_store
from vsteer.engine.driver import VllmEngine
from vsteer.engine.fake import FakeEngine
from vsteer.engine.start import EngineOptions
from vsteer.engine.stock import StockEngine
from vsteer.engine.table import Capacity
from vsteer.grid.spec import read_grid
from vsteer.plan.budget import budget
from vsteer.plan.model_facts import find_model
from vsteer.plan.plan import Plan, make_plan
from vsteer.plan.rows import Row
from vsteer.run.loop import Counts, Provenance, run_rows
from vsteer.run.vectors import MadeVectors, RunVectors
from vsteer.store.store import Store, open_store
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

ROUNDS = 4
WARM_ROWS, FLAT_ROWS = 10_000, 200_000
STORE_ROWS = 200_000
GRID = """\
version: 1
name: bench
model: {{id: {model}, dtype: bfloat16}}
vectors: {{v: {{file: v.safetensors}}}}
grid:
  - {{vector: v, layers: all, multipliers: {multipliers}, positions: after_prompt}}
evaluations:
  - {{kind: choice, data: sentiment, limit: {questions}}}
  - {{kind: open_ended, data: sentiment, limit: {prompts}, max_tokens: 16}}
"""


def bench_run(model: str, tell: Callable[[str], None]) -> list[Figure]:
    with TemporaryDirectory(prefix="vsteer-bench-") as folder:
        figures = _over_generate(model, Path(folder), tell)
        tell(f"the loop alone, {FLAT_ROWS:,} rows through an engine that runs no model")
        figures += _flat(model, Path(folder))
    tell(f"the store alone, {STORE_ROWS:,} rows of each kind")
    return figures + bench_store(STORE_ROWS)


def _over_generate(model: str, folder: Path, tell: Callable[[str], None]) -> list[Figure]:
    plan = _plan(model, folder / "small", multipliers=[-1, 1], questions=16, prompts=4)
    prompts = list({row.asked.prompt_id: None for row in plan.rows()})
    size = budget(plan)
    options = EngineOptions(dtype="bfloat16", max_model_len=512, kv_cache_gib=2)
    with ExitStack() as stack:
        tell("starting vsteer's engine (the first start compiles, about 75 s)")
        capacity = Capacity.for_grid(size.cells, size.vector_rows, size.terms)
        ours = stack.enter_context(
            closing(VllmEngine(str(plan.facts.folder), options=options, capacity=capacity))
        )
        tell("starting stock vLLM with its prefix cache")
        stock = stack.enter_context(closing(StockEngine(str(plan.facts.folder), options)))
        store = stack.enter_context(open_store(folder / "over-generate"))
        supply = RunVectors(plan, folder).supply()
        ours.load(supply.vectors, plan.steerings())

        def rows_of(round_: int) -> list[Row]:
            # other prompts every round, so that nothing is found from the round before
            chosen = set(prompts[round_::ROUNDS])
            return [row for row in plan.rows() if row.asked.prompt_id in chosen]

        def through_run(round_: int) -> float:
            rows = rows_of(round_)
            start = time.perf_counter()
            run_rows(ours, ((row, 1) for row in rows), store, _making(store, supply), Counts())
            store.flush()
            return len(rows) / (time.perf_counter() - start)

        def through_generate(round_: int) -> float:
            rows = rows_of(round_)
            requests = [request for row in rows for request in row.requests()]
            start = time.perf_counter()
            for _ in stock.run(requests):
                pass
            return len(rows) / (time.perf_counter() - start)

        tell(f"{plan.row_count:,} rows of {len(prompts)} prompts in {ROUNDS} rounds")
        run, generate = rates_in_turn(ROUNDS, through_run, through_generate)
    return [
        Figure(
            "vsteer run over LLM.generate, rows a second",
            median_ratio(run, generate),
            1 / 1.05,
            note=f"{np.median(run):.1f} and {np.median(generate):.1f} rows/s",
        )
    ]


def _flat(model: str, folder: Path) -> list[Figure]:
    """How the process grows while rows go by: everything but the engine."""
    plan = _plan(
        model, folder / "large", multipliers=[n / 16 for n in range(1, 128)], questions=60, prompts=2
    )
    facts = plan.facts
    assert facts.folder is not None
    assert facts.layers is not None
    assert facts.hidden_size is not None
    engine = FakeEngine(facts.folder, facts.layers, facts.hidden_size)
    supply = RunVectors(plan, folder).supply()
    engine.load(supply.vectors, plan.steerings())
    grown: dict[int, float] = {}

    def watch(counts: Counts, waiting: int) -> None:
        if counts.rows in (WARM_ROWS, FLAT_ROWS):
            grown[counts.rows] = resident_mib()

    with open_store(folder / "flat") as store:
        rows: Iterator[Row] = islice(plan.rows(), FLAT_ROWS)
        start = time.perf_counter()
        run_rows(engine, ((row, 1) for row in rows), store, _making(store, supply), Counts(), watch)
        seconds = time.perf_counter() - start
    growth = grown[FLAT_ROWS] - grown[WARM_ROWS]
    return [
        Figure(
            "room left of 200 MB that the process may grow by",
            200 - growth * 2**20 / 1e6,
            0.0,
            note=f"{growth:.0f} MiB from row {WARM_ROWS:,} to row {FLAT_ROWS:,}",
        ),
        Figure("rows a second of the loop alone", FLAT_ROWS / seconds),
    ]


def _plan(model: str, folder: Path, multipliers: list[float], questions: int, prompts: int) -> Plan:
    folder.mkdir()
    text = GRID.format(model=model, multipliers=multipliers, questions=questions, prompts=prompts)
    (folder / "grid.yaml").write_text(text)
    path = folder / "v.safetensors"
    save(SteeringVector("v", {0: np.ones(1, np.float32)}), path)
    facts, _ = find_model(read_grid(folder / "grid.yaml"), 0)
    assert facts.layers is not None
    assert facts.hidden_size is not None
    noise = np.random.default_rng(0).standard_normal((facts.layers, facts.hidden_size)).astype(np.float32)
    save(SteeringVector("v", dict(enumerate(noise))), path, overwrite=True)
    grid = read_grid(folder / "grid.yaml")
    return make_plan(grid, 0, *find_model(grid, 0))


def _making(store: Store, supply: MadeVectors) -> Provenance:
    return Provenance("bench", "", store.session, supply)


def resident_mib() -> float:
    with Path("/proc/self/status").open() as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
