"""The search for one multiplier: a bracket that grows from the unsteered model, and then closes.

The KL divergence grows about with the multiplier's square, so its root is what is interpolated. The bracket
closes by the secant; where one end moves twice in a row, the other loses weight (the Illinois rule).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vsteer.plan.doses import WITHIN
from vsteer.store.schema import plain_multiplier

FIRST, LARGEST = 1.0, 1e6
LEAST_GROWTH, MOST_GROWTH = 1.5, 16.0
FAR = 16.0
# It takes about six; where rounding makes the divergence leap, no number of them is enough.
MOST_TRIES = 40


@dataclass
class _End:
    size: float  # |multiplier|
    gap: float  # the root of its divergence over the wanted one, less 1


class DoseSearch:
    """One dose of one steering: `next_multiplier` is tried, and `take` given the divergence that it has."""

    def __init__(self, kl: float, sign: int, acts_at_zero: bool) -> None:
        self.kl, self.sign = kl, sign
        self.multiplier: float | None = None  # once it is found
        self.measured: float | None = None
        self.why = ""  # why there is none
        self._largest = 0.0
        self._tries = 0
        # what acts with a multiplier of 0 too is measured there first
        self._size = 0.0 if acts_at_zero else FIRST
        self._low = None if acts_at_zero else _End(0.0, -1.0)
        self._high: _End | None = None
        self._moved: _End | None = None

    @property
    def open(self) -> bool:
        return self.multiplier is None and not self.why

    @property
    def next_multiplier(self) -> float:
        return self.sign * self._size

    def take(self, kl: float) -> None:
        self._tries += 1
        tried, self._largest = self._size, max(self._largest, kl)
        if not math.isfinite(kl):
            self.why = f"a multiplier of {self.next_multiplier:g} has no finite one"
        elif tried and abs(kl - self.kl) <= WITHIN * self.kl:
            self.multiplier, self.measured = self.next_multiplier, kl
        elif not tried and kl >= self.kl:
            self.why = f"a multiplier of 0 has {kl:.3g} already"
        else:
            # one far above says little of where the wanted one is
            root = min(math.sqrt(max(kl, 0.0) / self.kl), FAR)
            self._narrow(_End(tried, root - 1))
            self._choose(kl)

    def _narrow(self, found: _End) -> None:
        if found.gap < 0:
            if self._high and self._moved is self._low:
                self._high.gap /= 2
            self._low = found
        else:
            if self._low and self._moved is self._high:
                self._low.gap /= 2
            self._high = found
        self._moved = found

    def _choose(self, kl: float) -> None:
        low, high, tried = self._low, self._high, self._size
        assert low is not None
        if high is not None:
            size = low.size - low.gap * (high.size - low.size) / (high.gap - low.gap)
        elif tried >= LARGEST:
            self.why = f"the largest reached is {self._largest:.3g}, with multipliers up to {LARGEST:g}"
            return
        elif not tried:
            size = FIRST
        else:
            growth = 1.2 * math.sqrt(self.kl / kl) if kl > 0 else MOST_GROWTH
            size = min(LARGEST, tried * min(MOST_GROWTH, max(LEAST_GROWTH, growth)))
        # six digits, so that it is the same number wherever it is written
        self._size = plain_multiplier(float(f"{size:.6g}"))
        if self._size in (low.size, high.size if high else None) or self._tries >= MOST_TRIES:
            self.why = (
                f"it leaps over that at a multiplier of {self.sign * tried:g}; the largest reached is "
                f"{self._largest:.3g}"
            )
