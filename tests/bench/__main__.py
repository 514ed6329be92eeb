"""`make bench`: the store, the loop, a start, many engines, scorers, queries, statistics, on made-up data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import click

from tests.bench.cluster import bench_cluster
from tests.bench.coverage import bench_statistics
from tests.bench.loop import bench_loop
from tests.bench.queries import bench_live, bench_queries
from tests.bench.scoring import bench_scoring
from tests.bench.start import ITEMS, bench_start
from tests.bench.store import bench_store
from vsteer.bench.figures import Figure
from vsteer.cli.bench import on_progress, show

# Each takes the share of its full size that it is to measure.
BENCHES: dict[str, Callable[[float], list[Figure]]] = {
    "store": lambda share: bench_store(int(200_000 * share)),
    "loop": lambda share: bench_loop(int(200_000 * share)),
    "scoring": lambda share: bench_scoring(int(100_000 * share)),
    "statistics": lambda share: bench_statistics(int(1000 * share), int(500 * share), on_progress),
    "queries": lambda share: bench_queries(int(10_000_000 * share)),
    "start": lambda share: bench_start(int(ITEMS * share)),
    "cluster": lambda share: bench_cluster(int(10_000_000 * share), on_progress),
    "live": lambda share: bench_live(int(10_000_000 * share)),
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHES)))
@click.option("--quick", is_flag=True, help="A tenth of the rows and of the simulated runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(names: Sequence[str], quick: bool, as_json: bool) -> None:
    """Run the benchmarks NAMES, by default all; exits 1 when a figure falls short."""
    figures = []
    for name in names or BENCHES:
        on_progress(name)
        measured = BENCHES[name](0.1 if quick else 1)
        figures += [replace(figure, name=f"{name}: {figure.name}") for figure in measured]
    show(figures, as_json)


if __name__ == "__main__":
    main()
