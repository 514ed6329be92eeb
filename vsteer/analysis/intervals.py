"""Intervals of a mean over items: BCa bootstrap, many configurations at once; and the paired t-test.

Each item is resampled as one value, the mean over its letter orders and samples: these depend on one another,
and items don't. The level is expanded as if by Student's t, since a bootstrap of few
items is too narrow by the factor sqrt((n - 1) / n) and by the normal's quantiles (Hesterberg 2015, "What
teachers should know about the bootstrap", 5.3); for many items nothing changes.

The test is Student's on the items' differences: it is about the mean, as the interval is. A sign-flip or
rank test would need the differences to be symmetric, and steering's are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri

Numbers = NDArray[np.float64]

SEED = 0
LEVEL = 0.95
# Very many items get fewer resamples, so that their weights take some 80 MB.
RESAMPLES, FEWEST_RESAMPLES, MOST_WEIGHTS = 5000, 2000, 10_000_000
# With fewer items a bootstrap says nothing: tests/bench/coverage.py shows what it covers with ten.
FEWEST_ITEMS = 10
FEW_ITEMS = 30
# So many configurations at once, whose resampled means take some 40 MB.
AT_ONCE = 1000
EQUAL = 1e-12


@dataclass(frozen=True)
class Means:
    """One entry a configuration; NaN where it says nothing."""

    mean: Numbers
    se: Numbers
    low: Numbers
    high: Numbers
    p_value: Numbers


def mean_intervals(values: Numbers, seed: int = SEED) -> Means:
    """The means of [configuration, item], all finite, where the items are the sample."""
    count, items = values.shape
    nothing = np.full(count, np.nan)
    if items == 0:
        return Means(nothing, nothing, nothing, nothing, nothing)
    mean = values.mean(1)
    if items < 2:
        return Means(mean, nothing, nothing, nothing, nothing)
    se = values.std(1, ddof=1) / np.sqrt(items)
    p_value, low, high = nothing.copy(), nothing.copy(), nothing.copy()
    varied = ~all_equal(values)
    p_value[varied] = 2 * stats.t.sf(np.abs(mean[varied]) / se[varied], items - 1)
    if items >= FEWEST_ITEMS and varied.any():
        low[varied], high[varied] = _of_means(values[varied], seed)
    return Means(mean, se, low, high, p_value)


def why_no_interval(values: Numbers) -> str | None:
    """What a reader has to know about the interval of one configuration, or about its absence."""
    if len(values) == 0:
        return "no item has an effect"
    if len(values) < FEWEST_ITEMS:
        return f"no interval: fewer than {FEWEST_ITEMS} items"
    if all_equal(values[None])[0]:
        return "no interval: all items are equal"
    if len(values) < FEW_ITEMS:
        return f"fewer than {FEW_ITEMS} items: the interval may cover some 90%, not 95"
    return None


def all_equal(values: Numbers) -> NDArray[np.bool_]:
    """Whether a configuration's items are equal but for rounding."""
    found: NDArray[np.bool_] = np.ptp(values, axis=1) <= EQUAL * np.maximum(1, np.abs(values).max(1))
    return found


def expanded(items: int, level: float = LEVEL) -> float:
    """The level that a bootstrap of so many items needs to cover `level` of normal values."""
    return float(1 - 2 * ndtr(stats.t.ppf((1 - level) / 2, items - 1) * np.sqrt(items / (items - 1))))


@lru_cache(maxsize=2)
def resampling_weights(items: int, seed: int = SEED) -> Numbers:
    """[item, resample]: how often each item is drawn, over how many are drawn."""
    resamples = max(FEWEST_RESAMPLES, min(RESAMPLES, MOST_WEIGHTS // items))
    drawn = np.random.default_rng([seed, items]).integers(items, size=(resamples, items))
    drawn += np.arange(resamples)[:, None] * items
    counts = np.bincount(drawn.ravel(), minlength=resamples * items).reshape(resamples, items)
    weights: Numbers = np.ascontiguousarray(counts.T / items)
    weights.setflags(write=False)
    return weights


def bca(estimates: Numbers, resampled: Numbers, influence: Numbers, level: float) -> tuple[Numbers, Numbers]:
    """The bias-corrected, accelerated interval of each estimate (Efron 1987).

    `resampled` is [estimate, resample]; `influence` is [estimate, item]: what each item does to the estimate.
    NaN where all resamples lie on one side.
    """
    below = (resampled < estimates[:, None]).mean(1) + (resampled <= estimates[:, None]).mean(1)
    skew = (influence**3).sum(1) / (6 * (influence**2).sum(1) ** 1.5)
    ordered = np.sort(resampled, axis=1)
    with np.errstate(invalid="ignore"):
        bias = ndtri(below / 2)
        ends = [
            _quantile(ordered, ndtr(bias + (bias + z) / (1 - skew * (bias + z))))
            for z in ndtri([(1 - level) / 2, (1 + level) / 2])
        ]
    return ends[0], ends[1]


def _quantile(ordered: Numbers, shares: Numbers) -> Numbers:
    """Each row's quantile at its own share, between its neighbours."""
    last = ordered.shape[1] - 1
    at = np.where(np.isfinite(shares), shares, 0) * last
    below = np.minimum(at.astype(int), last - 1)
    rows = np.arange(len(ordered))
    part = at - below
    found: Numbers = ordered[rows, below] * (1 - part) + ordered[rows, below + 1] * part
    return np.where(np.isfinite(shares), found, np.nan)


def _of_means(values: Numbers, seed: int) -> tuple[Numbers, Numbers]:
    items = values.shape[1]
    weights, level = resampling_weights(items, seed), expanded(items)
    ends = [bca(part.mean(1), part @ weights, part - part.mean(1)[:, None], level) for part in _parts(values)]
    low, high = (np.concatenate(end) for end in zip(*ends, strict=True))
    return low, high


def _parts(values: Numbers) -> Iterator[Numbers]:
    for start in range(0, len(values), AT_ONCE):
        yield values[start : start + AT_ONCE]
