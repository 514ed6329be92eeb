"""What the loop of a run takes with an engine that runs no model: rows a second, and memory."""

from __future__ import annotations

import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

from tests.fake_engine import FakeEngine, FastBlockEngine
from vsteer.bench.figures import Figure
from vsteer.bench.memory import held
from vsteer.bench.run import made_up_plan
from vsteer.plan.plan import Plan
from vsteer.run.loop import Counts, Provenance, RowLoop, rows_of
from vsteer.run.vectors import RunVectors
from vsteer.store.store import open_store

# Memory is compared with that after so small a part of the rows.
EARLY = 1 / 20
MIB = 190.0


def bench_loop(rows: int = 200_000, model: str = "smollm2-135m-instruct") -> list[Figure]:
    """How fast rows go by, one by one and in blocks, and how the process grows: everything but the model."""
    with tempfile.TemporaryDirectory(prefix="vsteer-bench-") as name:
        folder = Path(name)
        multipliers = [n / 16 for n in range(1, 128)]
        plan = made_up_plan(model, folder, multipliers, questions=60, prompts=2)
        growth, alone = _run(plan, FakeEngine, folder, rows)
        _, blocks = _run(plan, FastBlockEngine, folder, plan.row_count)
    early = int(rows * EARLY)
    return [
        Figure(
            f"memory left of {MIB:g} MiB that it may grow by",
            MIB - growth,
            target=0,
            note=f"{growth:.0f} MiB from row {early:,} to row {rows:,}",
        ),
        Figure("rows a second, one by one", alone),
        Figure("choice rows a second in blocks", blocks, target=100_000),
    ]


def _run(plan: Plan, kind: type[FakeEngine], folder: Path, rows: int) -> tuple[float, float]:
    """How the process grew after its first rows, in MiB, and the choice rows or all rows a second."""
    facts = plan.facts
    assert facts.folder is not None
    assert facts.layers is not None
    assert facts.hidden_size is not None
    engine = kind(facts.folder, facts.layers, facts.hidden_size)
    vectors = RunVectors(plan, folder).stored()
    engine.load(vectors.directions, plan.steerings())
    grown: dict[int, float] = {}

    def watch(counts: Counts, waiting: int) -> None:
        if counts.rows in (int(rows * EARLY), rows):
            grown[counts.rows] = held() / 2**20

    with open_store(folder / kind.__name__) as store:
        making = Provenance("bench", "", store.session, vectors)
        todo = (
            (prompt, np.ones(prompt.count, np.int32))
            for prompt in plan.prompts()
            if prompt.is_block or not engine.info.blocks
        )
        start = time.perf_counter()
        if engine.info.blocks:
            loop = RowLoop(engine, store, making)
            loop.run(todo)
            store.flush()
            return 0.0, loop.counts.rows / (time.perf_counter() - start)
        RowLoop(engine, store, making, on_progress=watch).run_rows(islice(rows_of(todo), rows))
        seconds = time.perf_counter() - start
    return grown[rows] - grown[int(rows * EARLY)], rows / seconds
