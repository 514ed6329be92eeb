"""The store's benchmark measures what it says, on a few rows."""

from tests.bench.store import bench_store


def test_the_stores_benchmark_has_its_figures() -> None:
    figures = {figure.name: figure for figure in bench_store(2_500)}
    for kind in ("choice", "open_ended"):
        assert figures[f"{kind} rows a second"].value > 100
        assert figures[f"{kind} rows a second"].target == 20_000
        assert figures[f"{kind} memory left of 200 MiB"].ok
        assert figures[f"{kind} compact() rows a second"].value > 0
