"""What the loop of a run takes with an engine that runs no model: rows a second, and memory."""

from __future__ import annotations

import tempfile
import time
from itertools import islice
from pathlib import Path

from tests.fake_engine import FakeEngine
from vsteer.bench.figures import Figure
from vsteer.bench.run import made_up_plan
from vsteer.run.loop import Counts, Provenance, run_rows
from vsteer.run.vectors import RunVectors
from vsteer.store.store import open_store

# Memory is compared with that after so small a part of the rows.
EARLY = 1 / 20
MIB = 190.0


def bench_loop(rows: int = 200_000, model: str = "smollm2-135m-instruct") -> list[Figure]:
    """How the process grows while rows go by: everything but the model."""
    early = int(rows * EARLY)
    grown: dict[int, float] = {}

    def watch(counts: Counts, waiting: int) -> None:
        if counts.rows in (early, rows):
            grown[counts.rows] = resident_mib()

    with tempfile.TemporaryDirectory(prefix="vsteer-bench-") as name:
        folder = Path(name)
        multipliers = [n / 16 for n in range(1, 128)]
        plan = made_up_plan(model, folder, multipliers, questions=60, prompts=2)
        facts = plan.facts
        assert facts.folder is not None
        assert facts.layers is not None
        assert facts.hidden_size is not None
        engine = FakeEngine(facts.folder, facts.layers, facts.hidden_size)
        vectors = RunVectors(plan, folder).stored()
        engine.load(vectors.directions, plan.steerings())
        with open_store(folder / "run") as store:
            planned = ((row, 1) for row in islice(plan.rows(), rows))
            making = Provenance("bench", "", store.session, vectors)
            start = time.perf_counter()
            run_rows(engine, planned, store, making, Counts(), watch)
            seconds = time.perf_counter() - start
    growth = grown[rows] - grown[early]
    return [
        Figure(
            f"memory left of {MIB:g} MiB that it may grow by",
            MIB - growth,
            target=0,
            note=f"{growth:.0f} MiB from row {early:,} to row {rows:,}",
        ),
        Figure("rows a second", rows / seconds),
    ]


def resident_mib() -> float:
    with Path("/proc/self/status").open() as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
