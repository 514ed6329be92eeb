"""How many engines one driver can feed: the loop, the store and the cluster with engines that run no model.

Each engine is a process of its own on a simulated node and answers blocks at the pace of a GPU. All share the
cores of this machine with the driver, so what it uses of them is measured beside the rows a second.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.bench.paced import Pace
from tests.cluster.simulated import simulated_nodes
from vsteer.bench.figures import Figure
from vsteer.bench.memory import held
from vsteer.bench.run import made_up_plan
from vsteer.cluster.cluster import Cluster
from vsteer.plan.plan import Plan
from vsteer.run.loop import Provenance, RowLoop
from vsteer.run.vectors import RunVectors, StoredVectors
from vsteer.store.store import open_store

PACES = (2_000, 10_000)
ENGINES = (1, 2, 4, 8, 16, 32, 64)
NODES = 4
# With few engines ten million rows would take hours: so many seconds of them show the speed as well.
SECONDS = 20.0
MODEL = "tiny-llama"
MULTIPLIERS = 415  # at 6 layers: 2,491 rows a prompt


def bench_cluster(rows: int, on_progress: Callable[[str], None], most: int = max(ENGINES)) -> list[Figure]:
    """`rows` of the largest run, and at most `most` engines."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="vsteer-bench-") as name:
        folder = Path(name)
        multipliers = [n / 16 for n in range(1, MULTIPLIERS + 1)]
        plan = made_up_plan(MODEL, folder, multipliers, questions=60, prompts=1)
        with simulated_nodes(min(NODES, most), devices=max(1, most // NODES)):
            for count in (count for count in ENGINES if count <= most):
                on_progress(f"{count} engines")
                figures += _with_engines(plan, folder, count, rows, count == most)
    best = max(figure.value for figure in figures)
    return [*figures, Figure("rows a second through one driver, the most", best, target=100_000)]


def _with_engines(plan: Plan, folder: Path, count: int, rows: int, whole: bool) -> list[Figure]:
    facts = plan.facts
    assert facts.layers is not None
    assert facts.hidden_size is not None
    pace_file = folder / "pace"
    make = Pace(pace_file, facts.layers, facts.hidden_size, 512)
    vectors = RunVectors(plan, folder).stored()
    engine = Cluster(make, least=count, most=count, gpu=True)
    try:
        engine.load(vectors.directions, plan.steerings())
        engine.wait_for(count)
        figures = []
        for pace in PACES:
            pace_file.write_text(str(pace))
            wanted = rows if whole and pace == max(PACES) else min(rows, int(SECONDS * pace * count))
            figures.append(_measured(plan, folder / f"{count}-{pace}", engine, wanted, pace, vectors))
        return figures
    finally:
        engine.close()


def _measured(
    plan: Plan, folder: Path, engine: Cluster, rows: int, pace: int, vectors: StoredVectors
) -> Figure:
    prompts = [prompt for prompt in plan.prompts() if prompt.is_block]
    each = prompts[0].count
    blocks = -(-rows // each)
    todo = ((prompts[n % len(prompts)], np.ones(each, np.int32)) for n in range(blocks))
    with open_store(folder) as store:
        loop = RowLoop(engine, store, Provenance("bench", "", store.session, vectors))
        start, cpu = time.perf_counter(), time.process_time()
        loop.run(todo)
        store.flush()
        seconds, busy = time.perf_counter() - start, time.process_time() - cpu
    count, rate = len(engine.members), loop.counts.rows / seconds
    return Figure(
        f"{count} engines of {pace:,} rows/s",
        rate,
        note=f"{loop.counts.rows:,} rows, {rate / (pace * count):.0%} of the engines' pace; driver: "
        f"{busy / seconds:.0%} of a core, {loop.counts.rows / busy:,.0f} rows for each second of a core, "
        f"{held() / 2**20:,.0f} MiB",
    )
