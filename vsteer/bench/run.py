"""`vsteer bench run`: what the run costs over the bare engine.

The same prompts go through `vsteer run`'s loop into a store, steered, and through stock vLLM's `LLM.generate`
with its prefix cache, unsteered, in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from vsteer.bench.figures import Figure, median_ratio, rates_in_turn
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.engine.stock import StockEngine
from vsteer.engine.table import Capacity
from vsteer.grid.spec import read_grid
from vsteer.plan.budget import budget
from vsteer.plan.model_facts import find_model
from vsteer.plan.plan import Plan, make_plan
from vsteer.plan.rows import Row
from vsteer.run.loop import Provenance, RowLoop
from vsteer.run.vectors import RunVectors
from vsteer.store.store import open_store
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

ROUNDS = 4
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


def bench_run(model: str, quick: bool, on_progress: Callable[[str], None]) -> list[Figure]:
    with TemporaryDirectory(prefix="vsteer-bench-") as folder:
        return _over_generate(model, Path(folder), 8 if quick else 16, on_progress)


def _over_generate(
    model: str, folder: Path, questions: int, on_progress: Callable[[str], None]
) -> list[Figure]:
    plan = made_up_plan(model, folder, multipliers=[-1, 1], questions=questions, prompts=4)
    prompts = list({row.rendered.prompt_id: None for row in plan.rows()})
    size = budget(plan)
    options = EngineOptions(max_model_len=512, kv_cache_gib=2)
    with ExitStack() as stack:
        on_progress("starting vsteer's engine (the first start compiles, about 75 s)")
        capacity = Capacity.for_grid(size.cells, size.vector_rows, size.terms)
        ours = stack.enter_context(
            closing(VllmEngine(str(plan.facts.folder), dtype="bfloat16", options=options, capacity=capacity))
        )
        on_progress("starting stock vLLM with its prefix cache")
        stock = stack.enter_context(closing(StockEngine(str(plan.facts.folder), "bfloat16", options)))
        store = stack.enter_context(open_store(folder / "over-generate"))
        vectors = RunVectors(plan, folder).stored()
        provenance = Provenance("bench", "", store.session, vectors)
        ours.load(vectors.directions, plan.steerings())

        def rows_of(round_: int) -> list[Row]:
            # Each round has other prompts, so that nothing is found in the cache.
            chosen = set(prompts[round_::ROUNDS])
            return [row for row in plan.rows() if row.rendered.prompt_id in chosen]

        def through_run(round_: int) -> float:
            rows = rows_of(round_)
            start = time.perf_counter()
            RowLoop(ours, store, provenance).run_rows((row, 1) for row in rows)
            store.flush()
            return len(rows) / (time.perf_counter() - start)

        def through_generate(round_: int) -> float:
            rows = rows_of(round_)
            requests = [request for row in rows for request in row.requests()]
            start = time.perf_counter()
            for _ in stock.run(requests):
                pass
            return len(rows) / (time.perf_counter() - start)

        on_progress(f"{plan.row_count:,} rows of {len(prompts)} prompts in {ROUNDS} rounds")
        run, generate = rates_in_turn(ROUNDS, through_run, through_generate)
    return [
        Figure(
            "vsteer run over LLM.generate, rows a second",
            median_ratio(run, generate),
            1 / 1.05,
            note=f"{np.median(run):.1f} and {np.median(generate):.1f} rows/s",
        )
    ]


def made_up_plan(model: str, folder: Path, multipliers: list[float], questions: int, prompts: int) -> Plan:
    """The plan of a grid with a random vector at every layer."""
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
