"""A dose: the KL divergence that a steering is to have on neutral text, as a part of a configuration.

Its multiplier is found when the run has the engine. A configuration's identity has the dose, with all that
decides what is found, and never the number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsteer.datasets.neutral import NeutralText, read_neutral
from vsteer.grid.axes import Dose
from vsteer.grid.spec import Grid
from vsteer.plan.vector_sources import located

# How far the KL divergence of a found multiplier may be from what was asked, as a fraction of it.
WITHIN = 0.02


@dataclass(frozen=True)
class PlannedDose:
    asked: Dose
    text: NeutralText

    def identity(self) -> dict[str, Any]:
        return {
            "kl": self.asked.kl,
            "sign": self.asked.sign,
            "text": self.text.sha256,
            "within": WITHIN,
        }


def planned_doses(grid: Grid) -> Mapping[Dose, PlannedDose]:
    """The doses that the grid's blocks ask for, with their texts."""
    found: dict[Dose, PlannedDose] = {}
    texts: dict[str, NeutralText] = {}
    for n, axis in enumerate(grid.grid):
        for dose in axis.multipliers or ():
            if isinstance(dose, Dose) and dose not in found:
                with located(grid, ("grid", n, "multipliers")):
                    if dose.text not in texts:
                        texts[dose.text] = read_neutral(dose.text, Path(grid.folder))
                found[dose] = PlannedDose(dose, texts[dose.text])
    return found
