"""Three ways in which an effect may change with a model's size, fitted by least squares.

    exponential   offset + scale x exp(-rate x size), rate > 0
    power         scale x size^-rate
    log_linear    offset + scale x ln(size)

All parameters but `rate` are linear, so a fit is a search along one line of rates. A parameter's interval is
a profile: every value at which the rest can be chosen so that the residual sum of squares stays below the
bound of the F test with the residual degrees of freedom. An end is missing where the data don't bound the
parameter, and the whole interval where there are no degrees of freedom. Each point counts alike: models
differ by more than the noise of items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import brentq, minimize_scalar

from vsteer.analysis.intervals import LEVEL, Numbers

RATES = 2000
# Below LINE an exponential is a straight line over the sizes; above STEP it is a step behind the smallest.
LINE, STEP = 1e-3, 30.0
STEEPEST_POWER = 6.0
# Residuals below this share of the values' size are rounding.
EXACT = 1e-9

Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class Family:
    """offset + scale x exp(-rate x u), where u is the size or its logarithm; or offset + scale x u."""

    name: str
    parameters: tuple[str, ...]
    logarithmic: bool

    def u(self, sizes: Numbers) -> Numbers:
        return np.log(sizes) if self.logarithmic else sizes

    def rates(self, sizes: Numbers) -> Numbers:
        """The rates that are tried, ascending."""
        if "offset" not in self.parameters:
            return np.linspace(-STEEPEST_POWER, STEEPEST_POWER, RATES)
        ordered = np.unique(sizes)
        return np.geomspace(LINE / (ordered[-1] - ordered[0]), STEP / (ordered[1] - ordered[0]), RATES)


EXPONENTIAL = Family("exponential", ("offset", "scale", "rate"), logarithmic=False)
POWER = Family("power", ("scale", "rate"), logarithmic=True)
LOG_LINEAR = Family("log_linear", ("offset", "scale"), logarithmic=True)
FAMILIES = (EXPONENTIAL, POWER, LOG_LINEAR)


@dataclass(frozen=True)
class Curve:
    """A family fitted to points."""

    family: Family
    values: Mapping[str, float]
    intervals: Mapping[str, Interval]  # empty without residual degrees of freedom; None where there is no end
    points: int
    rss: float
    # whether the best rate lies at an end of the search, in which case the data show no such curve
    at_the_end: bool

    @property
    def residual_df(self) -> int:
        return self.points - len(self.family.parameters)

    def at(self, sizes: Numbers) -> Numbers:
        u = self.family.u(sizes)
        bent = np.exp(-self.values["rate"] * u) if "rate" in self.values else u
        return self.values.get("offset", 0.0) + self.values["scale"] * bent


def fit(family: Family, sizes: Numbers, values: Numbers) -> Curve | None:
    """The least squares; None with fewer distinct sizes than parameters."""
    wanted = len(family.parameters)
    if len(np.unique(sizes)) < wanted:
        return None
    search = _Search(family, sizes, values)
    rate, at_the_end = search.best()
    found = search.at(np.array([rate]))
    best = {name: float(found.values[name][0]) for name in family.parameters}
    rss, freedom = float(found.rss[0]), len(sizes) - wanted
    intervals: Mapping[str, Interval] = {}
    if freedom > 0:
        bound = rss * (1 + stats.f.ppf(LEVEL, 1, freedom) / freedom)
        intervals = search.profile(rate, max(bound, search.exact))
    return Curve(family, best, intervals, len(sizes), rss, at_the_end)


@dataclass(frozen=True)
class _Fits:
    """Least squares at each of some rates."""

    values: Mapping[str, Numbers]
    # the variance of each estimate over that of the residuals
    variance: Mapping[str, Numbers]
    rss: Numbers


class _Search:
    def __init__(self, family: Family, sizes: Numbers, values: Numbers) -> None:
        self.family, self.y = family, values
        self.u = family.u(sizes)
        self.bent = "rate" in family.parameters
        self.rates = family.rates(sizes) if self.bent else np.zeros(1)
        self.exact = (EXACT * float(np.abs(values).max())) ** 2

    def at(self, rates: Numbers) -> _Fits:
        # counted from the first size on, so that steep curves don't vanish altogether
        first = self.u.min() if self.bent else 0.0
        z = np.exp(-rates[:, None] * (self.u - first)) if self.bent else self.u[None]
        with np.errstate(over="ignore"):
            unit = np.exp(rates * first)
        values: dict[str, Numbers] = {"rate": rates}
        variance: dict[str, Numbers] = {"rate": np.zeros_like(rates)}
        middle, y = np.zeros((len(rates), 1)), self.y
        if "offset" in self.family.parameters:
            middle, y = z.mean(1, keepdims=True), self.y - self.y.mean()
        inverse = 1 / ((z - middle) ** 2).sum(1)
        scale = ((z - middle) @ y) * inverse
        values["scale"], variance["scale"] = scale * unit, inverse * unit**2
        values["offset"] = self.y.mean() - scale * middle[:, 0]
        variance["offset"] = 1 / len(self.y) + middle[:, 0] ** 2 * inverse
        rss = ((y - scale[:, None] * (z - middle)) ** 2).sum(1)
        return _Fits(values, variance, rss)

    def rss(self, rate: float) -> float:
        return float(self.at(np.array([rate])).rss[0])

    def best(self) -> tuple[float, bool]:
        """The rate with the least squares, and whether it is an end of the search."""
        if not self.bent:
            return 0.0, False
        nearest = int(np.argmin(self.at(self.rates).rss))
        if nearest in (0, len(self.rates) - 1):
            return float(self.rates[nearest]), True
        around = (self.rates[nearest - 1], self.rates[nearest + 1])
        found = minimize_scalar(self.rss, bounds=around, method="bounded", options={"xatol": 1e-12})
        best = min(float(found.x), float(self.rates[nearest]), key=self.rss)
        return best, False

    def profile(self, best: float, bound: float) -> dict[str, Interval]:
        """The least and the largest value that each parameter has in the fits within the bound."""
        names = self.family.parameters
        if not self.bent:
            return {name: _ends(self.at(self.rates), name, bound, False, False) for name in names}
        low = self._end(best, bound, self.rates[self.rates < best][::-1])
        high = self._end(best, bound, self.rates[self.rates > best])
        between = np.linspace(low or self.rates[0], high or self.rates[-1], RATES)
        found = self.at(np.unique(np.concatenate([self.rates, between, [best]])))
        linear = {name: _ends(found, name, bound, low is None, high is None) for name in names}
        return {**linear, "rate": (low, high)}

    def _end(self, best: float, bound: float, outwards: Numbers) -> float | None:
        """The furthest rate within the bound; None where that is the end of the search."""
        within = np.flatnonzero(self.at(outwards).rss <= bound) if len(outwards) else np.zeros(0, int)
        last = int(within[-1]) if len(within) else -1
        if last == len(outwards) - 1:
            return None
        inner = best if last < 0 else float(outwards[last])
        return float(brentq(lambda rate: self.rss(rate) - bound, inner, float(outwards[last + 1])))


def _ends(found: _Fits, name: str, bound: float, open_low: bool, open_high: bool) -> Interval:
    """A parameter's ends over all rates; none where it is reached at an end of the search itself."""
    inside = found.rss <= bound
    if not inside.any():
        return None, None
    half = np.sqrt(np.maximum(0, bound - found.rss[inside]) * found.variance[name][inside])
    last = int(inside.sum()) - 1

    def end(values: Numbers, at: int) -> float | None:
        unbounded = (open_low and at == 0) or (open_high and at == last)
        return None if unbounded or not np.isfinite(values[at]) else float(values[at])

    low, high = found.values[name][inside] - half, found.values[name][inside] + half
    return end(low, int(np.argmin(low))), end(high, int(np.argmax(high)))
