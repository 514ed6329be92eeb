"""Fits over sizes: the papers' law given back, scipy's fits, and what too few sizes can't say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from vsteer.analysis.curves import EXPONENTIAL, FAMILIES, LOG_LINEAR, POWER, fit
from vsteer.analysis.scaling import aicc, compare, loo_rmse, scaling_records

SIZES = np.array([0.5, 1, 2, 3, 5, 7, 13, 70])
RNG = np.random.default_rng(2)


def law(sizes: np.ndarray) -> np.ndarray:
    """Of arXiv 2507.11771: the peak effect by billions of parameters."""
    return 0.081 + 2.4 * np.exp(-0.42 * sizes)


def test_the_papers_law_is_given_back_over_eight_sizes() -> None:
    curve = fit(EXPONENTIAL, SIZES, law(SIZES))
    assert curve is not None
    assert (curve.values["offset"], curve.values["scale"], curve.values["rate"]) == pytest.approx(
        (0.081, 2.4, 0.42), rel=1e-5
    )
    assert curve.residual_df == 5
    for name, value in curve.values.items():
        low, high = curve.intervals[name]
        assert low == pytest.approx(value, rel=1e-4)
        assert high == pytest.approx(value, rel=1e-4)
    preferred = {one.family.name: one.preferred for one in compare(SIZES, law(SIZES))}
    assert preferred == {"exponential": True, "power": False, "log_linear": False}


def test_the_papers_three_sizes_leave_no_degree_of_freedom() -> None:
    sizes = np.array([7.0, 13, 70])
    found = {one.family.name: one for one in compare(sizes, law(sizes))}
    exponential = found["exponential"]
    assert exponential.curve is not None
    # any three points that bend as it does lie on it, so that these do proves nothing
    assert exponential.curve.residual_df == 0
    assert exponential.curve.rss == pytest.approx(0, abs=1e-15)
    assert not exponential.curve.intervals
    assert any("no residual degrees of freedom" in why for why in exponential.why)
    assert {one.preferred for one in found.values()} == {None}
    assert {one.aicc for one in found.values()} == {None}
    assert found["power"].curve is not None
    assert found["power"].curve.residual_df == 1


def test_a_noisy_exponential_is_scipys_least_squares() -> None:
    values = law(SIZES) + RNG.normal(0, 0.1, 8)
    curve = fit(EXPONENTIAL, SIZES, values)
    assert curve is not None
    theirs, _ = optimize.curve_fit(lambda x, a, b, c: a + b * np.exp(-c * x), SIZES, values, [0.1, 2, 0.5])
    assert [curve.values[name] for name in EXPONENTIAL.parameters] == pytest.approx(theirs, rel=1e-4)
    residuals = values - (theirs[0] + theirs[1] * np.exp(-theirs[2] * SIZES))
    assert curve.rss == pytest.approx(residuals @ residuals)


def test_the_profile_of_a_rate_is_where_scipys_best_fit_with_that_rate_meets_the_bound() -> None:
    values = law(SIZES) + RNG.normal(0, 0.2, 8)
    curve = fit(EXPONENTIAL, SIZES, values)
    assert curve is not None
    bound = curve.rss * (1 + stats.f.ppf(0.95, 1, 5) / 5)
    for end in curve.intervals["rate"]:
        assert end is not None
        rest = np.stack([np.ones(8), np.exp(-end * SIZES)], 1)
        assert np.linalg.lstsq(rest, values)[1][0] == pytest.approx(bound)
    for end in curve.intervals["offset"]:
        assert end is not None
        found = optimize.minimize(
            lambda at, end=end: float(((values - end - at[0] * np.exp(-at[1] * SIZES)) ** 2).sum()),
            [2.4, 0.42],
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-12},
        )
        assert found.fun == pytest.approx(bound, rel=1e-3)


def test_the_log_line_has_students_interval() -> None:
    values = 1.5 - 0.3 * np.log(SIZES) + RNG.normal(0, 0.1, 8)
    curve = fit(LOG_LINEAR, SIZES, values)
    theirs = stats.linregress(np.log(SIZES), values)
    assert curve is not None
    assert (curve.values["scale"], curve.values["offset"]) == pytest.approx((theirs.slope, theirs.intercept))
    half = stats.t.ppf(0.975, 6) * theirs.stderr
    assert curve.intervals["scale"] == pytest.approx((theirs.slope - half, theirs.slope + half))
    half = stats.t.ppf(0.975, 6) * theirs.intercept_stderr
    assert curve.intervals["offset"] == pytest.approx((theirs.intercept - half, theirs.intercept + half))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_power_law_is_given_back_whatever_its_sign(sign: int) -> None:
    curve = fit(POWER, SIZES, sign * 1.5 * SIZES**-0.6)
    assert curve is not None
    assert (curve.values["scale"], curve.values["rate"]) == pytest.approx((sign * 1.5, 0.6))


def test_a_straight_line_is_no_exponential_and_a_parameter_that_points_do_not_bound_has_no_end() -> None:
    line = fit(EXPONENTIAL, SIZES, 1 - 0.01 * SIZES)
    assert line is not None
    assert line.at_the_end
    # noise alone says nothing of a rate
    loose = fit(EXPONENTIAL, SIZES, np.array([1.0, 0.9, 1.1, 1.0, 0.95, 1.05, 1.0, 0.98]))
    assert loose is not None
    assert None in loose.intervals["rate"]


def test_aicc_and_leaving_one_out_by_hand() -> None:
    sizes, values = np.array([1.0, 2, 4, 8, 16, 32]), np.array([1.0, 0.8, 0.7, 0.5, 0.35, 0.2])
    curve = fit(LOG_LINEAR, sizes, values)
    assert curve is not None
    # three parameters with the variance: 2 x 3 + 2 x 3 x 4 / (6 - 3 - 1)
    assert aicc(LOG_LINEAR, curve, values) == pytest.approx(6 * math.log(curve.rss / 6) + 6 + 12)
    errors = []
    for n in range(6):
        rest = np.arange(6) != n
        line = stats.linregress(np.log(sizes[rest]), values[rest])
        errors.append(line.intercept + line.slope * np.log(sizes[n]) - values[n])
    assert loo_rmse(LOG_LINEAR, sizes, values) == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    # five points: the exponential has four parameters with the variance, and AICc needs six
    assert aicc(EXPONENTIAL, fit(EXPONENTIAL, sizes[:5], values[:5]), values[:5]) is None
    assert aicc(LOG_LINEAR, fit(LOG_LINEAR, sizes[:5], values[:5]), values[:5]) is not None


def test_no_family_is_preferred_where_all_is_noise() -> None:
    found = compare(SIZES, 1 + RNG.normal(0, 0.2, 8))
    assert {one.preferred for one in found} == {None}
    assert all(any("no family is preferred" in why for why in one.why) for one in found)


def peak(model: str, billions: float | None, effect: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "evaluation": "choice:refusal",
        "measure": "logit_diff",
        "vector": "refusal",
        "norm": "unit",
        "positions": "all",
        "operation": "add",
        "system": "",
        "multiplier": 1.0,
        "kl": None,
        "level": changes.get("multiplier", 1.0),
        "model": model,
        "billions": billions,
        "heldout_effect": effect,
        "depth": 0.4,
        "relative_norm": 0.1,
        "items": 50,
        **changes,
    }


def test_records_are_of_peaks_that_differ_in_the_model_alone() -> None:
    peaks = [peak(f"toy-{size:g}b", size, float(law(np.array(size)))) for size in SIZES[::-1]]
    peaks += [peak("toy-70b", 70, 9.0, norm="raw"), peak("toy-unnamed", None, 9.0), peak("toy-9b", 9, None)]
    # the same model from another run, on fewer items
    peaks += [peak("toy-7b", 7, 9.0, items=10)]
    records = scaling_records(peaks)
    assert len(records) == 2 * len(FAMILIES)
    unit = {one["family"]: one for one in records if one["norm"] == "unit"}
    assert unit["exponential"]["billions"] == SIZES.tolist()
    assert unit["exponential"]["effects"] == pytest.approx(law(SIZES))
    assert (unit["exponential"]["points"], unit["exponential"]["models_left_out"]) == (8, 3)
    assert unit["exponential"]["relative_norms"] == [0.1] * 8
    assert unit["exponential"]["preferred"] is True
    assert unit["exponential"]["rate"] == pytest.approx(0.42, rel=1e-5)
    assert (unit["power"]["offset"], unit["log_linear"]["rate"]) == (None, None)
    for one in (one for one in records if one["norm"] == "raw"):
        assert (one["points"], one["preferred"], one["scale"]) == (1, None, None)
        assert "models of 1 different sizes" in one["why"]


def test_an_ablation_has_no_multiplier_and_its_own_fit() -> None:
    peaks = [peak("a-1b", 1, 0.5, multiplier=None), peak("a-1b", 1, 0.7, multiplier=0.5)]
    assert [one["multiplier"] for one in scaling_records(peaks)[:: len(FAMILIES)]] == [None, 0.5]


def test_models_are_compared_at_one_dose_whatever_their_multipliers() -> None:
    peaks = [peak("a-1b", 1, 0.5, multiplier=0.7), peak("a-7b", 7, 0.4, multiplier=3.0)]
    dosed = [one | {"kl": 0.2, "level": 1} for one in peaks]
    assert {(one["points"], one["multiplier"], one["kl"]) for one in scaling_records(dosed)} == {
        (2, None, 0.2)
    }
    assert {one["points"] for one in scaling_records(peaks)} == {1}


def test_no_peaks_no_records() -> None:
    assert scaling_records([]) == []
