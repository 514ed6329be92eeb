"""The scorers' benchmark measures what it says, on a few texts."""

import pytest

from tests.bench.scoring import bench_scoring

pytestmark = pytest.mark.long


def test_the_scorers_benchmark_has_its_figures() -> None:
    seconds, memory = bench_scoring(2_000)
    assert seconds.name == "2,000 texts, seconds left of 1.2"
    assert seconds.value < 1.2
    assert "refusal, repetition, length, characters: " in seconds.note
    assert memory.value < 200
    assert "with 2,000 texts" in memory.note
