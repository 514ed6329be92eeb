"""Half-splits, near layers and the band, where the answer is known or worked out another way."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vsteer.analysis.peaks import band, best_layer, half_splits, held_out, near_best

RNG = np.random.default_rng(11)


def test_halves_are_halves_and_the_same_each_time() -> None:
    splits = half_splits(9, splits=50)
    assert splits.shape == (50, 9)
    assert (splits.sum(1) == 4).all()
    assert np.array_equal(splits, half_splits(9, splits=50))
    assert len(np.unique(splits, axis=0)) > 30


def test_held_out_is_what_a_loop_over_halves_says() -> None:
    values = RNG.normal(size=(7, 12)) + np.linspace(0, 1, 7)[:, None]
    sums = np.zeros(12)
    chosen = np.zeros(7)
    for first in half_splits(12, splits=40):
        for choosing, measuring in ((first, ~first), (~first, first)):
            layer = int(np.argmax([values[n][choosing].mean() for n in range(7)]))
            chosen[layer] += 1 / 80
            sums[measuring] += values[layer][measuring]
    found = held_out(values, splits=40)
    assert found.values == pytest.approx(sums / 40)
    assert found.chosen == pytest.approx(chosen)
    assert found.effect == pytest.approx(sums.mean() / 40)
    assert found.layer == np.argmax(chosen)


def test_one_clear_peak_is_chosen_always_and_its_effect_is_the_plain_mean() -> None:
    values = RNG.normal(0, 0.1, (5, 40))
    values[3] += 2
    found = held_out(values)
    assert (found.layer, found.chosen[3], best_layer(values)) == (3, 1, 3)
    assert found.effect == pytest.approx(values[3].mean())
    assert found.widening == pytest.approx(1)
    assert near_best(values).tolist() == [False, False, False, True, False]


def test_of_nothing_the_held_out_effect_is_nothing_on_average() -> None:
    # The largest mean of 30 layers of 40 items stands at 2 standard errors and more.
    effects, largest = [], []
    for _ in range(150):
        values = RNG.normal(size=(30, 40))
        effects.append(held_out(values, splits=50).effect)
        largest.append(values.mean(1).max())
    assert abs(np.mean(effects)) < 4 * np.std(effects) / np.sqrt(150)
    assert np.mean(largest) > 0.25


def test_near_layers_are_those_that_a_paired_t_test_leaves() -> None:
    shared = RNG.normal(0, 3, 25)
    means = np.array([0.0, 0.6, 1.0, 0.95, 0.2])
    values = shared + means[:, None] + RNG.normal(0, 0.4, (5, 25))
    best = int(np.argmax(values.mean(1)))
    expected = [
        n == best or stats.ttest_rel(values[best], values[n], alternative="greater").pvalue >= 0.05 / 4
        for n in range(5)
    ]
    assert near_best(values).tolist() == expected
    assert not all(expected)


def test_layers_that_are_equal_are_near_and_so_is_an_only_layer() -> None:
    same = np.tile(RNG.normal(size=20), (3, 1))
    assert near_best(same).all()
    assert near_best(same[:1]).all()
    # behind by the same on every item is behind
    assert near_best(np.stack([same[0], same[0] - 1])).tolist() == [True, False]


def test_a_band_compares_each_controls_own_largest() -> None:
    # layers' means: 1, -3, 2
    effects = np.array([[0.0, 2.0], [-3.0, -3.0], [2.0, 2.0]])
    # own largest: 2.5 (below zero), 1
    controls = np.array([[[0.0, 0.0], [-2.5, -2.5], [1.0, 1.0]], [[1.0, 1.0], [0.5, 0.5], [0.0, 0.0]]])
    found = band(effects, controls)
    assert (found.largest, found.layer, found.maxima.tolist()) == (-3, 1, [2.5, 1])
    assert (found.exceeded_by, found.p_value) == (0, 1 / 3)
    # two controls can't carry a claim
    assert found.outside is None


@pytest.mark.parametrize(("beaten_by", "outside"), [(0, True), (1, False)])
def test_with_nineteen_controls_all_of_them_must_be_exceeded(beaten_by: int, outside: bool) -> None:
    controls = np.full((19, 2, 4), 0.5)
    controls[:beaten_by, 1] = -1
    found = band(np.array([[0.0] * 4, [1.0] * 4]), controls)
    assert (found.outside, found.p_value) == (outside, (1 + beaten_by) / 20)


def test_no_controls_no_claim() -> None:
    found = band(np.ones((2, 3)), np.zeros((0, 2, 3)))
    assert (found.outside, len(found.maxima)) == (None, 0)
