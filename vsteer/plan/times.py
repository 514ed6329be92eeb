"""How long a plan's rows will take, and everything around them, by what earlier runs measured.

A time has a part for each thing that a run does. What no run of the model on this machine has measured is
unknown: it is not guessed from another model or machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vsteer.datasets.items import ItemSet
from vsteer.plan.budget import Budget
from vsteer.plan.plan import Plan
from vsteer.plan.rates import Rate
from vsteer.vectors.recipe import Recipe

Seconds = tuple[float, float]


@dataclass(frozen=True)
class TimePart:
    """One thing that a run does, the least and the most time that it takes, and when that was measured."""

    name: str
    seconds: Seconds | None  # None: no run has measured it
    day: str = ""


@dataclass(frozen=True)
class Left:
    """What is still to be done of a plan."""

    rows: tuple[int, ...]  # of each block
    extractions: tuple[Recipe, ...] = ()
    dose_tokens: int = 0  # of neutral text, once for each dose that is to be found


def times(plan: Plan, budget: Budget, rates: Mapping[str, Rate], left: Left) -> list[TimePart]:
    """The parts in their order; none where no row is left."""
    if not any(left.rows):
        return []
    parts = [_part("engine start", {"start": 1.0}, rates)]
    if left.extractions:
        parts.append(_part("extraction", {"characters": sum(map(characters, left.extractions))}, rates))
    if left.dose_tokens:
        parts.append(_part("doses", {"dose_tokens": left.dose_tokens}, rates))
    shares = [rows / max(1, block.rows) for rows, block in zip(left.rows, budget.blocks, strict=True)]
    for kind, name in (("choice", "choices"), ("open_ended", "texts")):
        blocks = [
            (block, share) for block, share in zip(budget.blocks, shares, strict=True) if block.kind == kind
        ]
        rows = sum(block.rows * share for block, share in blocks)
        tokens = sum(
            (block.computed_tokens if kind == "choice" else block.output_tokens) * share
            for block, share in blocks
        )
        if rows:
            parts.append(_part(name, {f"{kind}_rows": rows, f"{kind}_tokens": tokens}, rates))
    scored = sum(block.coherence_tokens * share for block, share in zip(budget.blocks, shares, strict=True))
    if scored:
        parts.append(_part("perplexities", {"coherence_tokens": scored}, rates))
    if plan.facts.dtype != "float32" and "choices" in (part.name for part in parts):
        parts.append(_part("rounding", {"rounding": 1.0}, rates))
    parts.append(_part("statistics", {"statistics_rows": budget.rows}, rates))
    return parts


def total(parts: Sequence[TimePart]) -> Seconds | None:
    """The least and the most time of all parts that are known; None where no part is."""
    known = [part.seconds for part in parts if part.seconds]
    return (sum(one[0] for one in known), sum(one[1] for one in known)) if known else None


def characters(recipe: Recipe) -> int:
    """About how much text an extraction reads."""
    data = recipe.data
    if isinstance(data, ItemSet):
        return sum(2 * len(item.question) + len(item.positive) + len(item.negative) for item in data.items)
    return sum(len(prompt.text) for prompts in (data.positive, data.negative) for prompt in prompts.prompts)


def _part(name: str, counts: Mapping[str, float], rates: Mapping[str, Rate]) -> TimePart:
    """Where time has a share for each row and one for each token, it lies between what either alone says."""
    known = [(counts[what], rates[what]) for what in counts if what in rates]
    if not known:
        return TimePart(name, None)
    least = min(count / rate.fast for count, rate in known)
    most = max(count / rate.slow for count, rate in known)
    return TimePart(name, (least, most), max(rate.day for _, rate in known))
