"""The grid's exclusions, ready to be compared with millions of configurations of which few may be left.

An exclusion leaves out the configurations that agree with everything it names. What is the same for many
configurations, such as vector and norm, is compared once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from vsteer.evaluations.evaluation import Evaluation
from vsteer.grid.axes import Group, Level
from vsteer.grid.spec import Exclude
from vsteer.protocol import Positions


@dataclass(frozen=True)
class Exclusion:
    """One entry of `exclude:` on a model; None stands for whatever it does not name."""

    place: int  # in the grid's list
    entry: Exclude
    layers: frozenset[Group] | None
    multipliers: frozenset[Level] | None
    positions: frozenset[Positions] | None

    @classmethod
    def made(cls, place: int, entry: Exclude, layers: int | None) -> Self:
        """For a model of so many layers: it may name some that this model lacks."""
        groups: Iterable[Group] | None = None
        if entry.layers is not None:
            try:
                groups = entry.layers.groups or entry.layers.resolve(layers)
            except ValueError:
                groups = ()
        return cls(
            place,
            entry,
            None if groups is None else frozenset(groups),
            None if entry.multipliers is None else frozenset(entry.multipliers),
            None if entry.positions is None else frozenset(entry.positions),
        )

    def concerns(
        self, model: str, name: str, evaluation: Evaluation, vector: str, norm: str, control: str
    ) -> bool:
        entry = self.entry
        return (
            (entry.model is None or model in entry.model)
            and (entry.evaluation is None or name in entry.evaluation)
            and entry.kind in (None, evaluation.kind, evaluation.row_kind)
            and (entry.vector is None or vector in entry.vector)
            and (entry.norm is None or norm in entry.norm)
            and control in (entry.control or ("",))
        )


def at_layers(exclusions: Sequence[Exclusion], group: Group) -> list[Exclusion]:
    return [one for one in exclusions if one.layers is None or group in one.layers]


def at_multiplier(exclusions: Sequence[Exclusion], multiplier: Level | None) -> list[Exclusion]:
    return [one for one in exclusions if one.multipliers is None or multiplier in one.multipliers]


def at_positions(exclusions: Sequence[Exclusion], positions: Positions | None) -> int | None:
    """The place of the first that leaves out what all of the above have in common, at these positions."""
    for one in exclusions:
        if one.positions is None or positions in one.positions:
            return one.place
    return None
