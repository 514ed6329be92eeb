"""A benchmark's figures: name, value, target, and whether it was met."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    name: str
    value: float
    target: float | None = None  # at least this; None for a figure that is only reported
    accepted: float | None = None  # the figure passes from here on, where that is less than the target
    note: str = ""

    @property
    def ok(self) -> bool:
        least = self.accepted if self.accepted is not None else self.target
        return least is None or self.value >= least


def as_json(figures: Sequence[Figure]) -> str:
    return json.dumps({f.name: {"value": f.value, "target": f.target, "ok": f.ok} for f in figures}, indent=2)


def as_table(figures: Sequence[Figure]) -> str:
    lines = [("FIGURE", "VALUE", "TARGET", "", "")]
    for figure in figures:
        target = "" if figure.target is None else f">= {figure.target:g}"
        if figure.accepted is not None:
            target += f" (accepted {figure.accepted:g})"
        verdict = "" if figure.target is None else "ok" if figure.ok else "SHORT"
        lines.append((figure.name, f"{figure.value:.3g}", target, verdict, figure.note))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def as_lines(figures: Sequence[Figure]) -> str:
    """The figures on one line, while the rest is still being measured."""
    return "; ".join(
        f"{figure.name} {figure.value:.3g}" + (f" ({figure.note})" if figure.note else "")
        for figure in figures
    )


def rates_in_turn(rounds: int, *measures: Callable[[int], float]) -> list[list[float]]:
    """Call the measures in turn, round by round, the order reversed every other round.

    A machine that slows down or speeds up then does so for all of them.
    """
    rates: list[list[float]] = [[] for _ in measures]
    for round_ in range(rounds):
        order = list(range(len(measures)))
        for index in order if round_ % 2 == 0 else reversed(order):
            rates[index].append(measures[index](round_))
    return rates


def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))
