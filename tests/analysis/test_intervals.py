"""Intervals of means against scipy's BCa and t-test, and where there is nothing to say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vsteer.analysis.intervals import (
    FEWEST_ITEMS,
    all_equal,
    bca,
    expanded,
    mean_intervals,
    resampling_weights,
    why_no_interval,
)

RNG = np.random.default_rng(7)
SAMPLES = {
    "symmetric": RNG.normal(0.3, 1, 40),
    "skewed": RNG.gamma(1, 1, 60),
    "bounded": np.clip(RNG.normal(0.05, 0.4, 25), -0.2, 1),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_interval_is_scipys_bca(name: str) -> None:
    values = SAMPLES[name]
    found = mean_intervals(values[None])
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=50_000, confidence_level=expanded(len(values)), rng=1
    ).confidence_interval
    # Two bootstraps differ by what they draw: with 5000 resamples an end has a standard error of its own,
    # 0.06 of the mean's (of the quantile 0.05, of the bias correction 0.035).
    assert found.low[0] == pytest.approx(theirs.low, abs=0.2 * found.se[0])
    assert found.high[0] == pytest.approx(theirs.high, abs=0.2 * found.se[0])


def test_bca_of_the_same_resamples_is_scipys() -> None:
    values = SAMPLES["skewed"]
    theirs = stats.bootstrap((values,), np.mean, n_resamples=999, confidence_level=0.9, rng=3)
    deviations = (values - values.mean())[None]
    low, high = bca(values.mean(keepdims=True), theirs.bootstrap_distribution[None], deviations, 0.9)
    assert (low[0], high[0]) == pytest.approx(
        (theirs.confidence_interval.low, theirs.confidence_interval.high), rel=1e-9
    )


def test_many_configurations_at_once_are_each_by_itself() -> None:
    values = RNG.normal(size=(5, 30)) * np.arange(1, 6)[:, None]
    together = mean_intervals(values)
    for row in range(5):
        alone = mean_intervals(values[row : row + 1])
        assert (together.low[row], together.high[row]) == pytest.approx((alone.low[0], alone.high[0]))


def test_the_test_is_the_paired_t_test_of_steered_and_unsteered() -> None:
    unsteered = RNG.normal(1, 1, 20)
    steered = unsteered + RNG.normal(0.3, 0.5, 20)
    found = mean_intervals((steered - unsteered)[None])
    assert found.p_value[0] == pytest.approx(stats.ttest_rel(steered, unsteered).pvalue)
    assert found.se[0] == pytest.approx(stats.sem(steered - unsteered))


def test_the_expanded_level_makes_a_normal_bootstrap_as_wide_as_students_interval() -> None:
    for items in (10, 50, 1000):
        # a bootstrap's spread is that with n, Student's that with n - 1
        half = stats.norm.ppf((1 + expanded(items)) / 2) * np.sqrt((items - 1) / items)
        assert half == pytest.approx(stats.t.ppf(0.975, items - 1))
    assert expanded(10**6) == pytest.approx(0.95, abs=1e-5)


def test_weights_draw_as_many_as_there_are() -> None:
    weights = resampling_weights(17)
    assert weights.shape[0] == 17
    assert weights.sum(0) == pytest.approx(1)
    assert np.array_equal(weights, resampling_weights(17))
    # each item as often as the others: 5000 resamples of 17, so within 5 standard deviations
    assert weights.sum(1) * 17 == pytest.approx(5000, abs=5 * np.sqrt(5000))


def test_few_or_equal_items_have_no_interval_and_say_so() -> None:
    none, one, few = np.zeros(0), np.ones(1), np.arange(FEWEST_ITEMS - 1, dtype=np.float64)
    equal = np.full(40, 0.1) + 1e-17
    for values, words in ((none, "no item"), (one, "fewer than"), (few, "fewer than"), (equal, "equal")):
        found = mean_intervals(values[None])
        assert np.isnan([found.low[0], found.high[0]]).all()
        assert words in (why_no_interval(values) or "")
    assert np.isnan(mean_intervals(none[None]).mean[0])
    assert mean_intervals(one[None]).mean[0] == 1
    assert np.isnan(mean_intervals(one[None]).se[0])
    assert np.isnan(mean_intervals(equal[None]).p_value[0])
    # three items or more do have a test: 0 .. 8 has mean 4 and variance 7.5
    assert mean_intervals(few[None]).p_value[0] == pytest.approx(2 * stats.t.sf(4 / np.sqrt(7.5 / 9), 8))


def test_a_constant_configuration_does_not_spoil_its_neighbours() -> None:
    values = np.stack([np.full(20, 2.0), np.arange(20.0)])
    found = mean_intervals(values)
    assert all_equal(values).tolist() == [True, False]
    assert np.isnan(found.low).tolist() == [True, False]


def test_enough_items_have_nothing_to_say() -> None:
    assert why_no_interval(np.arange(30, dtype=np.float64)) is None
    assert "some 90%" in (why_no_interval(np.arange(29, dtype=np.float64)) or "")
