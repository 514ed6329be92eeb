"""How many engines one driver can feed: the loop, the store and the cluster with engines that run no model.

Each engine is a process of its own on a simulated node and answers blocks at the pace of a GPU. All share the
cores of this machine with the driver, so what it uses of them is measured beside the rows a second.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import ray
from ray.cluster_utils import Cluster as Nodes

from tests.bench.loop import resident_mib
from tests.bench.paced import Pace
from vsteer.bench.figures import Figure
from vsteer.bench.run import made_up_plan
from vsteer.cluster.cluster import Cluster
from vsteer.cluster.session import imported_ray
from vsteer.plan.plan import Plan
from vsteer.run.loop import Counts, Provenance, run_prompts
from vsteer.run.vectors import RunVectors, StoredVectors
from vsteer.store.store import open_store

PACES = (2_000, 10_000)
ENGINES = (1, 2, 4, 8, 16, 32, 64)
NODES = 4
# With few engines ten million rows would take hours: so many seconds of them show the speed as well.
SECONDS = 20.0
MODEL = "tiny-llama"
MULTIPLIERS = 415  # at 6 layers: 2,491 rows a prompt
ROOT = Path(__file__).parents[2]


def bench_cluster(rows: int, on_progress: Callable[[str], None], most: int = max(ENGINES)) -> list[Figure]:
    """`rows` of the largest run, and at most `most` engines."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="vsteer-bench-") as name:
        folder = Path(name)
        multipliers = [n / 16 for n in range(1, MULTIPLIERS + 1)]
        plan = made_up_plan(MODEL, folder, multipliers, questions=60, prompts=1)
        nodes = _nodes(most)
        try:
            for count in (count for count in ENGINES if count <= most):
                on_progress(f"{count} engines")
                figures += _with_engines(plan, folder, count, rows, count == most)
        finally:
            ray.shutdown()
            nodes.shutdown()
    best = max(figure.value for figure in figures)
    return [*figures, Figure("rows a second through one driver, the most", best, target=100_000)]


def _nodes(engines: int) -> Nodes:
    """Nodes with devices that are only counted."""
    imported_ray()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(min(NODES, engines)):
        nodes.add_node(num_cpus=1, num_gpus=max(1, engines // NODES))
    ray.init(address=nodes.address, logging_level="warning", log_to_driver=False)
    return nodes


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
        while sum(member.state == "up" for member in engine.members) < count:
            list(engine._receive())
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
    counts = Counts()
    with open_store(folder) as store:
        making = Provenance("bench", "", store.session, vectors)
        start, cpu = time.perf_counter(), time.process_time()
        run_prompts(engine, todo, store, making, counts)
        store.flush()
        seconds, busy = time.perf_counter() - start, time.process_time() - cpu
    count, rate = len(engine.members), counts.rows / seconds
    return Figure(
        f"{count} engines of {pace:,} rows/s",
        rate,
        note=f"{counts.rows:,} rows, {rate / (pace * count):.0%} of the engines' pace; driver: "
        f"{busy / seconds:.0%} of a core, {counts.rows / busy:,.0f} rows for each second of a core, "
        f"{resident_mib():,.0f} MiB",
    )
