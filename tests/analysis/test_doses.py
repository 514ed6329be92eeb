"""Fits over multipliers: known curves given back, and scipy's fits of the same likelihood."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit

from vsteer.analysis.doses import fit_line, fit_logistic, isotonic

RNG = np.random.default_rng(5)
MULTIPLIERS = np.array([-2.0, -1, 0, 0.5, 1, 2])


def test_isotonic_by_hand() -> None:
    found = isotonic(np.array([1.0, 3, 2, 4]))
    # 3 and 2 are pooled to 2.5: residuals 0.25 + 0.25, about the mean 2.5: 2.25 + 0.25 + 0.25 + 2.25
    assert (found.fitted.tolist(), found.direction, found.r2) == ([1, 2.5, 2.5, 4], "rising", 0.9)
    falling = isotonic(np.array([4.0, 2, 3, 1]))
    assert (falling.fitted.tolist(), falling.direction, falling.r2) == ([4, 2.5, 2.5, 1], "falling", 0.9)
    assert isotonic(np.ones(3)).r2 is None


def test_the_line_is_the_regression_of_the_means() -> None:
    values = 0.5 + 1.5 * MULTIPLIERS + RNG.normal(0, 1, (40, len(MULTIPLIERS)))
    found = fit_line(MULTIPLIERS, values)
    theirs = stats.linregress(MULTIPLIERS, values.mean(0))
    assert (found.slope, found.intercept) == pytest.approx((theirs.slope, theirs.intercept))
    assert found.r2 == pytest.approx(theirs.rvalue**2)
    assert found.midpoint == pytest.approx(-theirs.intercept / theirs.slope)
    own = [stats.linregress(MULTIPLIERS, row).slope for row in values]
    assert found.per_item == pytest.approx(own)
    assert found.interval.low[0] < found.slope < found.interval.high[0]


def test_a_logistic_curve_is_given_back() -> None:
    found = fit_logistic(MULTIPLIERS, np.tile(expit(-0.4 + 1.7 * MULTIPLIERS), (12, 1)))
    assert found is not None
    assert (found.intercept, found.slope, found.r2) == pytest.approx((-0.4, 1.7, 1))
    # every item says the same
    assert np.isnan(found.interval.low[0])


def test_the_logistic_fit_has_the_greatest_likelihood() -> None:
    values = np.clip(RNG.beta(2, 1, (30, 6)) + 0.1 * MULTIPLIERS, 0, 1)
    found = fit_logistic(MULTIPLIERS, values)
    assert found is not None
    means = values.mean(0)

    def loss(at: np.ndarray) -> float:
        p = expit(at[0] + at[1] * MULTIPLIERS)
        return float(-(means * np.log(p) + (1 - means) * np.log(1 - p)).sum())

    theirs = optimize.minimize(loss, [0, 0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x
    assert (found.intercept, found.slope) == pytest.approx(theirs, abs=1e-5)


def test_what_an_item_makes_of_the_slope_is_what_leaving_it_out_says() -> None:
    values = expit(RNG.normal(1, 1, (60, 1)) + RNG.gamma(2, 0.5, (60, 1)) * MULTIPLIERS)
    found = fit_logistic(MULTIPLIERS, values)
    assert found is not None
    assert found.per_item.mean() == pytest.approx(found.slope)
    without = [fit_logistic(MULTIPLIERS, np.delete(values, n, 0)) for n in range(60)]
    jackknife = np.array([59 * (found.slope - one.slope) for one in without if one])
    assert np.corrcoef(jackknife, found.per_item)[0, 1] > 0.999
    assert jackknife.std() == pytest.approx(found.per_item.std(), rel=0.05)


def test_no_curve_is_nearest_to_a_leap_or_to_certainty() -> None:
    leap = np.tile((MULTIPLIERS > 0).astype(float), (4, 1))
    assert fit_logistic(MULTIPLIERS, leap) is None
    assert fit_logistic(MULTIPLIERS, np.ones((4, 6))) is None


def test_a_curve_that_is_flat_has_no_midpoint() -> None:
    found = fit_line(MULTIPLIERS, np.ones((4, 6)))
    assert (found.slope, found.midpoint, found.r2) == (0, None, None)
