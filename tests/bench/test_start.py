"""The benchmark of a start measures what it says, on a few items."""

import pytest

from tests.bench.start import bench_start

pytestmark = pytest.mark.long


def test_a_start_a_stop_and_a_check_are_measured() -> None:
    figures = bench_start(60)
    assert figures[0].note == "298,920 rows"
    assert [figure.name for figure in figures if not figure.ok and "MiB" in figure.name] == []
    assert all(figure.value < float(figure.name.split()[-1]) for figure in figures)
