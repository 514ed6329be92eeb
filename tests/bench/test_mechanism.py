"""`vsteer bench mechanism`: peaks of memory are what was allocated, and a product has its operations."""

from __future__ import annotations

import pytest
import torch

from vsteer.bench.mechanism import MIB, SIDE, _rise, _seconds_and_rate, bench_mechanism
from vsteer.mechanism.model import Model


def test_a_peak_is_what_was_there_at_once() -> None:
    # both so large that the C library gives them back when they are freed
    def work() -> None:
        for _ in range(2):
            first, second = torch.ones(80 * MIB // 4), torch.ones(40 * MIB // 4)
            del first, second

    assert _rise(work) / MIB == pytest.approx(120, rel=0.1)


def test_seconds_times_rate_are_operations() -> None:
    matrix = torch.randn(SIDE, SIDE)
    seconds, rate = _seconds_and_rate(lambda: matrix @ matrix)
    assert seconds * rate == pytest.approx(2 * SIDE**3, rel=0.5)


@pytest.mark.long
def test_every_part_is_measured_at_every_length() -> None:
    figures = bench_mechanism(Model.load("tiny-llama"), 2, True, lambda line: None)
    assert len(figures) == 3 * 2 * 2
    assert all(figure.value > 0 for figure in figures)
