"""What a run found, as tables in the terminal: the effect by layer, beside what control vectors do.

Effects are means over questions, without intervals: a first look, from the rows alone. What the table claims
of a peak is the verdict that `vsteer sql controls` gives.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from vsteer.cli.plain_table import plain_table
from vsteer.operations import OPERATIONS
from vsteer.report.facts import at_once
from vsteer.results.statistics_files import ENOUGH_CONTROLS
from vsteer.results.views import connect_runs

FAMILIES = """
select distinct on (c.family) c.family, c.setting, c.model, c.dtype, c.evaluation, c.system, c.vector, c.norm,
       c.operation, c.positions
from config_effects e join conditions c using (condition) where e.items > 0
order by c.model, c.dtype, c.evaluation, c.system, c.vector, c.norm, c.operation, c.positions
"""
EFFECTS = """
select c.family, e.condition, e.layers, e.multiplier, e.kl, e.level, e.effect, e.total_mass, p.prompts
from config_effects e
join conditions c using (condition)
join (select condition, count(effect) as prompts from effects where control = '' group by condition) p
    using (condition)
where e.items > 0
"""
BASELINES = """
select c.setting, avg(b.baseline_logit_diff), avg(b.baseline_mass), count(*)
from baselines b join conditions c on c.condition = b.baseline_condition
where b.baseline_logit_diff is not null
group by c.setting
"""
CHANCE = """
select family, layers, min(effect), max(effect) from control_effects where counted group by family, layers
"""
VERDICTS = """
select family, control, controls, controls_left_out, control_largest, verdict, condition, headline
from control_verdicts order by family, headline desc, control
"""
ROUNDINGS = "select model, dtype, evaluation, rounding from roundings"

Layers = tuple[int, ...]


@dataclass(frozen=True)
class Effect:
    condition: int
    layers: Layers
    multiplier: float | None  # None: an operation that has none
    kl: float | None  # the dose that its multiplier was found by
    level: float | None  # its sign then, else the multiplier
    effect: float
    mass: float
    prompts: int

    @property
    def written(self) -> tuple[bool, float] | None:
        """What the grid lists, doses behind multipliers; None: an operation that has none."""
        if self.level is None:
            return None
        return (False, self.level) if self.kl is None else (True, self.level * self.kl)


@dataclass(frozen=True)
class Family:
    """One vector in one setting, over all its layers and multipliers."""

    setting: int
    model: str
    dtype: str
    evaluation: str
    system: str
    vector: str
    norm: str
    operation: str
    positions: str


@dataclass(frozen=True)
class Baseline:
    margin: float
    mass: float
    prompts: int


@dataclass(frozen=True)
class Verdict:
    """A line of `control_verdicts`."""

    control: str
    controls: int
    left_out: int
    largest: float | None
    words: str
    condition: int  # where the vector's effect is largest
    headline: bool


def layer_curves(folder: Path) -> str:
    with connect_runs([folder]) as database:
        families = {row[0]: Family(*row[1:]) for row in database.execute(FAMILIES).fetchall()}
        effects = _by_family(database, EFFECTS)
        baselines = {row[0]: Baseline(*row[1:]) for row in database.execute(BASELINES).fetchall()}
        chance = _by_family(database, CHANCE)
        verdicts = _by_family(database, VERDICTS)
        roundings = {tuple(row[:3]): row[3] for row in database.execute(ROUNDINGS).fetchall()}
    dtypes = defaultdict(set)
    for family in families.values():
        dtypes[family.model].add(family.dtype)
    return "\n\n".join(
        _curve(
            family,
            f"{family.model} in {family.dtype}" if len(dtypes[family.model]) > 1 else family.model,
            [Effect(condition, tuple(layers), *rest) for condition, layers, *rest in effects[number]],
            baselines[family.setting],
            {tuple(layers): (low, high) for layers, low, high in chance[number]},
            [Verdict(*row) for row in verdicts[number]],
            roundings.get((family.model, family.dtype, family.evaluation)),
        )
        for number, family in families.items()
    )


def _by_family(database: duckdb.DuckDBPyConnection, query: str) -> Mapping[int, list[Sequence[Any]]]:
    """The rows of a query, without their first column, by that column."""
    found: dict[int, list[Sequence[Any]]] = defaultdict(list)
    for family, *row in database.execute(query).fetchall():
        found[family].append(row)
    return found


def _curve(
    family: Family,
    model: str,
    effects: Sequence[Effect],
    baseline: Baseline,
    chance: Mapping[Layers, tuple[float, float]],
    verdicts: Sequence[Verdict],
    rounding: float | None,
) -> str:
    counts = sorted({one.prompts for one in effects})
    operation = OPERATIONS[family.operation]
    # one operation has multipliers, or none; with a dose each layer has its own
    levels = sorted({one.written for one in effects}, key=lambda level: level or (False, 0.0))
    by_place = {(one.layers, one.written): one for one in effects}
    header = [
        "LAYER",
        *(
            operation.done.upper() if level is None else f"{'KL ' * level[0]}{level[1]:+g}"
            for level in levels
        ),
        "MASS",
        *(["CONTROLS"] if chance else []),
    ]
    rows = []
    for layers in sorted({one.layers for one in effects}):
        here = [by_place.get((layers, level)) for level in levels]
        row = [at_once(layers), *(f"{one.effect:+.2f}" if one else "" for one in here)]
        row.append(f"{min(one.mass for one in here if one):.3f}")
        if chance:
            row.append("{:+.2f} to {:+.2f}".format(*chance[layers]) if layers in chance else "")
        rows.append(row)
    with_system = f" under the system prompt {family.system!r}" if family.system else ""
    prompts = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    unsteered = f"mean of {prompts} prompts, less the unsteered {baseline.margin:+.2f} of {baseline.prompts}"
    what = operation.heading.format(vector=family.vector, norm=family.norm)
    head = [
        f"{family.evaluation}{with_system}: effect of {what} at {family.positions} in {model}",
        f"log p(matching) - log p(not matching), {unsteered}",
        f"MASS: the probability of all answers together, the least of a row (unsteered {baseline.mass:.3f})",
    ]
    lines = [*head, plain_table(header, rows), *_claims(effects, verdicts, operation.done)]
    small = sum(abs(one.effect) < rounding for one in effects) if rounding else 0
    if small:
        lines.append(
            f"warning: {small} of {len(effects)} effects lie below {rounding:.2f}, by which {family.dtype} "
            "moves an effect of one question (vsteer sql rounding)"
        )
    return "\n".join(lines)


def _claims(effects: Sequence[Effect], verdicts: Sequence[Verdict], done: str) -> list[str]:
    """The peak, and what the verdict says of it for each kind of control, the strictest first."""
    largest = {verdict.condition for verdict in verdicts}
    peak = max(
        (one for one in effects if not largest or one.condition in largest),
        key=lambda one: (abs(one.effect), -one.condition),
    )
    how = done if peak.multiplier is None else f"multiplier {peak.multiplier:+g}"
    if peak.kl is not None:
        how += f" for a KL dose of {peak.kl:g}"
    lines = [f"largest effect: {peak.effect:+.2f} at layer {at_once(peak.layers)}, {how}"]
    if not verdicts:
        lines.append(
            "no controls to compare it with: what chance gives isn't known "
            f"(`controls: {{random_vectors: {ENOUGH_CONTROLS}, unrelated: {ENOUGH_CONTROLS}}}` adds them)"
        )
    for verdict in verdicts:
        if verdict.largest is not None:
            lines.append(f"largest of {verdict.controls} {verdict.control} vectors: {verdict.largest:.2f}")
        if verdict.left_out:
            lines.append(
                f"{verdict.left_out} of the {verdict.controls + verdict.left_out} {verdict.control} vectors "
                "don't count: they lack rows, or repeat another vector"
            )
        strictest = "by the strictest control: " if verdict.headline and len(verdicts) > 1 else ""
        lines.append(f"{strictest}{verdict.words}")
    return lines
