"""How projections become colours: white at the mean of all tokens, full at the ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Full colours, below and above the mean; the text on them is black or white.
BELOW, ABOVE = (194, 80, 10), (15, 95, 168)


@dataclass(frozen=True)
class Scale:
    """The distance from their own mean, on one scale for both."""

    mean: float
    random_mean: float
    spread: float
    random_spread: float
    full: float  # this far from the mean a colour is full

    @classmethod
    def of(cls, vector: Floats, random: Floats) -> Scale:
        """From the numbers of one layer, along the vector and along a random one."""
        if not len(vector):
            return cls(0.0, 0.0, 0.0, 0.0, 1.0)
        far = np.abs(np.concatenate([vector - vector.mean(), random - random.mean()]))
        full = float(np.quantile(far, 0.95)) or 1.0
        return cls(float(vector.mean()), float(random.mean()), float(vector.std()), float(random.std()), full)

    def shade(self, value: float, *, random: bool = False) -> float:
        """From -1 to 1."""
        away = value - (self.random_mean if random else self.mean)
        return float(np.clip(away / self.full, -1.0, 1.0))


def style(shade: float) -> str:
    """White at 0, and a full colour at -1 and 1."""
    full = ABOVE if shade > 0 else BELOW
    mixed = [round(255 + (part - 255) * abs(shade)) for part in full]
    ink = "white" if abs(shade) > 0.6 else "black"
    return f"{ink} on rgb({mixed[0]},{mixed[1]},{mixed[2]})"
