"""How an effect grows with the multiplier: the nearest curve that never turns back, and one slope.

The logit difference gets a straight line and the probability a logistic curve, which is a line in logits.
Both slopes have intervals over items. The line's slope is the mean of the items' own slopes; the logistic
curve is fitted to the means, and its interval is that of its linearisation: what each item does to the slope.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

from vsteer.analysis.intervals import Means, Numbers, mean_intervals

# Two points are on every line and on every curve.
FEWEST_POINTS = 3
PARAMETERS = 2
STEPS = 50


@dataclass(frozen=True)
class Isotonic:
    fitted: Numbers
    direction: Literal["rising", "falling"]
    r2: float | None  # None: all means are equal


@dataclass(frozen=True)
class Fit:
    """means = intercept + slope x multiplier, of the logits where `kind` is logistic."""

    kind: Literal["line", "logistic"]
    intercept: float
    slope: float
    per_item: Numbers  # the slope by each item; their mean is the slope
    r2: float | None

    @property
    def interval(self) -> Means:
        return mean_intervals(self.per_item[None])

    @property
    def midpoint(self) -> float | None:
        return -self.intercept / self.slope if self.slope else None


def isotonic(means: Numbers) -> Isotonic:
    """The nearer of the two monotone curves, by least squares."""
    rising = np.asarray(isotonic_regression(means).x)
    falling = np.asarray(isotonic_regression(means, increasing=False).x)
    if _rss(means, falling) < _rss(means, rising):
        return Isotonic(falling, "falling", r_squared(means, falling))
    return Isotonic(rising, "rising", r_squared(means, rising))


def fit_line(multipliers: Numbers, values: Numbers) -> Fit:
    """The line through the means of [item, multiplier]."""
    x = multipliers - multipliers.mean()
    slopes = values @ x / (x @ x)
    slope = float(slopes.mean())
    intercept = float(values.mean() - slope * multipliers.mean())
    r2 = r_squared(values.mean(0), intercept + slope * multipliers)
    return Fit("line", intercept, slope, slopes, r2)


def fit_logistic(multipliers: Numbers, values: Numbers) -> Fit | None:
    """The logistic regression of the means of probabilities [item, multiplier]; each multiplier counts alike.

    None where no curve is nearest: all means are 0 or 1, or leap from one to the other.
    """
    means, design = values.mean(0), np.stack([np.ones_like(multipliers), multipliers])
    found = _regression(design, means)
    if found is None:
        return None
    curve = expit(found @ design)
    information = (design * curve * (1 - curve)) @ design.T
    # its mean is 0, since the fit's residuals are
    influence = np.linalg.solve(information, design @ (values - curve).T)[1]
    return Fit("logistic", float(found[0]), float(found[1]), found[1] + influence, r_squared(means, curve))


def _regression(design: Numbers, means: Numbers) -> Numbers | None:
    """Newton's method on the likelihood; a step that doesn't improve it is halved."""

    def loss(at: Numbers) -> float:
        return float((np.logaddexp(0, at @ design) - means * (at @ design)).sum())

    middle = np.clip(means.mean(), 1e-9, 1 - 1e-9)
    found = np.array([logit(middle), 0.0])
    for _ in range(STEPS):
        curve = expit(found @ design)
        information = (design * curve * (1 - curve)) @ design.T
        if np.linalg.cond(information) > 1e12:
            return None
        step = np.linalg.solve(information, design @ (means - curve))
        if np.abs(step).max() < 1e-10 * max(1.0, float(np.abs(found).max())):
            return found
        size = 1.0
        while loss(found + size * step) > loss(found) and size > 1e-6:
            size /= 2
        found = found + size * step
    return None


def r_squared(values: Numbers, fitted: Numbers) -> float | None:
    """None where all values are equal."""
    total = _rss(values, values.mean())
    return float(1 - _rss(values, fitted) / total) if total > 0 else None


def _rss(values: Numbers, fitted: Numbers | np.float64) -> float:
    return float(((values - fitted) ** 2).sum())
