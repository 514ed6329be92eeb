"""The search for a multiplier, on divergences that are formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from vsteer.plan.doses import WITHIN
from vsteer.run.dose_search import DoseSearch

# the divergence by the multiplier, of a vector as long as `unit`
SHAPES: dict[str, Callable[[float], float]] = {
    "square": lambda m: m * m,
    "saturates": lambda m: 8 * (1 - math.exp(-m * m / 8)),
    "saturates early": lambda m: 3 * math.tanh(abs(m)) ** 2,
    "grows fast": lambda m: math.expm1(m * m),
    "one-sided": lambda m: m * m * (1.5 + math.tanh(m)),
}


def searched(search: DoseSearch, divergence: Callable[[float], float]) -> int:
    tries = 0
    while search.open:
        search.take(divergence(search.next_multiplier))
        tries += 1
    return tries


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("unit", [1e-3, 0.3, 1.0, 40.0, 3e4])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_divergence_is_the_one_that_was_asked_for(shape: str, unit: float, sign: int) -> None:
    def divergence(multiplier: float) -> float:
        return SHAPES[shape](min(max(multiplier / unit, -20), 20))

    for kl in (0.001, 0.05, 0.2, 2.0):
        search = DoseSearch(kl, sign, acts_at_zero=False)
        tries = searched(search, divergence)
        assert search.multiplier is not None, search.why
        assert search.multiplier * sign > 0
        assert divergence(search.multiplier) == pytest.approx(kl, rel=WITHIN)
        assert search.measured == divergence(search.multiplier)
        assert tries <= 25


def test_what_no_multiplier_reaches_is_named_with_the_largest() -> None:
    search = DoseSearch(0.2, 1, acts_at_zero=False)
    searched(search, lambda m: 0.05 * math.tanh(m))
    assert search.multiplier is None
    assert search.why == "the largest reached is 0.05, with multipliers up to 1e+06"
    search = DoseSearch(0.2, -1, acts_at_zero=False)
    searched(search, lambda m: 0.0)
    assert search.why == "the largest reached is 0, with multipliers up to 1e+06"


def test_a_leap_is_no_dose() -> None:
    search = DoseSearch(0.2, 1, acts_at_zero=False)
    assert searched(search, lambda m: 0.01 if m < 3 else 1.0) <= 40
    assert search.multiplier is None
    assert "it leaps over that at a multiplier of" in search.why
    search = DoseSearch(0.2, 1, acts_at_zero=False)
    searched(search, lambda m: math.nan)
    assert search.why == "a multiplier of 1 has no finite one"


def test_an_operation_that_acts_at_zero_is_measured_there() -> None:
    """A clamp's divergence has its least somewhere, and grows to both sides."""

    def clamp(multiplier: float) -> float:
        return 0.01 + (multiplier - 0.1) ** 2

    for sign, expected in ((1, 0.1 + math.sqrt(0.19)), (-1, 0.1 - math.sqrt(0.19))):
        search = DoseSearch(0.2, sign, acts_at_zero=True)
        assert search.next_multiplier == 0
        searched(search, clamp)
        assert search.multiplier == pytest.approx(expected, rel=0.02)
    search = DoseSearch(0.015, 1, acts_at_zero=True)
    searched(search, clamp)
    assert search.why == "a multiplier of 0 has 0.02 already"
