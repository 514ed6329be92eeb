"""The simulation of many engines writes whole rows, also those of baselines."""

from __future__ import annotations

import pytest

from tests.bench.cluster import PACES, bench_cluster


@pytest.mark.long
def test_one_engine_keeps_its_pace() -> None:
    figures = bench_cluster(5_000, lambda _: None, most=1)
    assert [figure.name for figure in figures[:-1]] == [f"1 engines of {pace:,} rows/s" for pace in PACES]
    assert all(figure.value > 500 for figure in figures)
