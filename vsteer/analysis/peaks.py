"""The best layer of a curve, honestly: chosen on some items and measured on others.

An effect that is reported at the layer where it is largest is too large, and bootstrapping an argmax doesn't
correct it. So the items are halved many times: one half chooses the layer, the other measures its effect,
both in turn. Each item is measured once a split, at a layer that it had no part in choosing; its mean over
splits is its held-out value. The interval is that of the mean of these values, widened to the spread that
items have within one split: over splits an item is measured at several layers, which evens out its own noise,
but the choices of layers share the items' noise. It covers the effect of the layers that such a choice picks
(tests/bench/coverage.py simulates it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vsteer.analysis.intervals import EQUAL, SEED, Numbers, mean_intervals
from vsteer.results.statistics_files import ENOUGH_CONTROLS

SPLITS = 200
# Two on either side.
FEWEST_TO_SPLIT = 4
ALPHA = 0.05


@dataclass(frozen=True)
class HeldOut:
    """The effect on half of the items at the layer that the other half chose."""

    values: Numbers  # one an item: its mean over splits
    widening: float  # how much wider the interval has to be than that of the mean of these values
    chosen: Numbers  # one a layer: the share of halves that chose it

    @property
    def effect(self) -> float:
        return float(self.values.mean())

    def interval(self) -> tuple[float, float]:
        """The effect's interval over items; NaN where there is none."""
        found = mean_intervals(self.values[None])
        low, high = (self.effect + (end[0] - self.effect) * self.widening for end in (found.low, found.high))
        return float(low), float(high)

    @property
    def layer(self) -> int:
        """The index of the layer that is chosen most often, the first of equals."""
        return int(np.argmax(self.chosen))


def best_layer(pushes: Numbers) -> int:
    """The index of the largest mean in [layer, item], the first of equals."""
    return int(np.argmax(pushes.mean(1)))


def half_splits(items: int, splits: int = SPLITS, seed: int = SEED) -> NDArray[np.bool_]:
    """[split, item]: which items are in the first half, which has one less if their number is odd."""
    order = np.random.default_rng([seed, items]).permuted(np.tile(np.arange(items), (splits, 1)), axis=1)
    return order < items // 2


def held_out(pushes: Numbers, splits: int = SPLITS, seed: int = SEED) -> HeldOut:
    """The held-out effect of [layer, item] with at least four items; larger is better."""
    layers, items = pushes.shape
    first = half_splits(items, splits, seed).T.astype(float)
    sums = pushes @ first
    by_first = np.argmax(sums, axis=0)
    by_second = np.argmax(pushes.sum(1)[:, None] - sums, axis=0)
    # an item of the first half is measured where the second half says
    measured_at = np.where(first.astype(bool), by_second, by_first)
    measured = np.take_along_axis(pushes.T, measured_at, axis=1)
    values = measured.mean(1)
    spread = values.std()
    widening = max(1.0, float(np.sqrt(measured.var(0).mean()) / spread)) if spread > 0 else 1.0
    chosen = np.bincount(np.concatenate([by_first, by_second]), minlength=layers) / (2 * splits)
    return HeldOut(values, widening, chosen)


def near_best(pushes: Numbers, alpha: float = ALPHA) -> NDArray[np.bool_]:
    """Which layers of [layer, item] can't be told from the best, paired by item; at least two items.

    A layer is out where the best one beats it in a one-sided paired t-test at alpha / (layers - 1). So the
    truly best layer is in, except in a share alpha of runs: it is out only if some layer beats *it*.
    """
    layers, items = pushes.shape
    gaps = pushes[best_layer(pushes)] - pushes
    gap, se = gaps.mean(1), gaps.std(1, ddof=1) / np.sqrt(items)
    needed = stats.t.isf(alpha / max(1, layers - 1), items - 1)
    # a gap that is only rounding is none
    near: NDArray[np.bool_] = gap <= np.maximum(needed * se, EQUAL * max(1.0, float(np.abs(pushes).max())))
    return near


@dataclass(frozen=True)
class Band:
    """A vector's largest |effect| over layers, beside each control vector's own over the same layers."""

    largest: float  # with its sign
    layer: int  # an index
    maxima: Numbers  # one a control

    @property
    def exceeded_by(self) -> int:
        return int((self.maxima >= abs(self.largest)).sum())

    @property
    def p_value(self) -> float:
        return (1 + self.exceeded_by) / (1 + len(self.maxima))

    @property
    def outside(self) -> bool | None:
        """None: too few controls to say."""
        return self.exceeded_by == 0 if len(self.maxima) >= ENOUGH_CONTROLS else None


def band(effects: Numbers, controls: Numbers) -> Band:
    """The band for a vector's [layer, item] and its controls' [control, layer, item]."""
    means = effects.mean(1)
    layer = int(np.argmax(np.abs(means)))
    maxima: Numbers = np.abs(controls.mean(2)).max(1) if len(controls) else np.zeros(0)
    return Band(float(means[layer]), layer, maxima)
