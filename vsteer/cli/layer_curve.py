"""What a run found, as tables in the terminal: the effect by layer, beside what control vectors do.

Means over questions and no intervals: a first look, from the rows alone. An effect is the logit difference
less the baseline's on the same question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsteer.cli.plain_table import plain_table
from vsteer.operations import OPERATIONS
from vsteer.results.views import connect_runs

# `setting` is all that a baseline shares with what is measured against it: see effects.sql.
EFFECTS = """
select c.setting, c.model, c.dtype, c.evaluation, c.system, c.vector, c.norm, c.operation, c.positions,
       c.control, c.control_index, c.multiplier, c.layer, avg(e.effect), avg(e.total_mass), count(*),
       c.vector_sha256
from effects e join conditions c using (condition)
where len(c.layers) = 1 and e.effect is not null
group by all
order by c.model, c.dtype, c.evaluation, c.system, c.vector, c.norm, c.operation, c.positions, c.control,
         c.control_index, c.multiplier, c.layer
"""
BASELINES = """
select c.setting, avg(b.baseline_logit_diff), avg(b.baseline_mass), count(*)
from baselines b join conditions c on c.condition = b.baseline_condition
where b.baseline_logit_diff is not null
group by c.setting
"""
# With so many of a kind, a peak outside all of theirs is outside at the 5% level.
ENOUGH_CONTROLS = 19


@dataclass(frozen=True)
class Effect:
    layer: int
    multiplier: float | None  # None: an operation that has none
    effect: float
    mass: float
    prompts: int
    vector_sha256: str

    @property
    def place(self) -> tuple[int, float | None, int]:
        return self.layer, self.multiplier, self.prompts


Controls = Mapping[tuple[str, int], list[Effect]]


def layer_curves(folder: Path) -> str:
    database = connect_runs([folder])
    baselines = {row[0]: row[1:] for row in database.execute(BASELINES).fetchall()}
    steered: dict[tuple[Any, ...], list[Effect]] = defaultdict(list)
    controls: dict[tuple[Any, ...], dict[tuple[str, int], list[Effect]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in database.execute(EFFECTS).fetchall():
        group, control, index, found = row[:9], row[9], row[10], Effect(row[12], row[11], *row[13:])
        if control in ("random", "shuffled"):
            controls[group][control, index].append(found)
        else:
            steered[group].append(found)
    dtypes = defaultdict(set)
    for _, model, dtype, *_ in steered:
        dtypes[model].add(dtype)
    parts = []
    for group, effects in steered.items():
        setting, model, dtype, *asked = group
        name = f"{model} in {dtype}" if len(dtypes[model]) > 1 else model
        parts.append(_curve((name, *asked), effects, baselines[setting], controls[group]))
    return "\n\n".join(parts)


def _curve(
    group: tuple[str, ...], found: Sequence[Effect], baseline: tuple[Any, ...], controls: Controls
) -> str:
    model, evaluation, system, vector, norm, operation, positions = group
    margin, mass, questions = baseline
    counts = sorted({one.prompts for one in found})
    # one operation has multipliers, or none
    done = OPERATIONS[operation].done
    multipliers = sorted({one.multiplier for one in found}, key=lambda m: m or 0)
    by_place = {(one.layer, one.multiplier): one for one in found}
    layers = sorted({one.layer for one in found})
    header = [
        "LAYER",
        *(f"{m:+g}" if m is not None else done.upper() for m in multipliers),
        "MASS",
        *(["CONTROLS"] if controls else []),
    ]
    rows = []
    for layer in layers:
        here = [by_place.get((layer, m)) for m in multipliers]
        chance = [one.effect for run in controls.values() for one in run if one.layer == layer]
        rows.append(
            [
                str(layer),
                *(f"{one.effect:+.2f}" if one else "" for one in here),
                f"{min(one.mass for one in here if one):.3f}",
                *([f"{min(chance):+.2f} to {max(chance):+.2f}"] if chance else [""] if controls else []),
            ]
        )
    with_system = f" under the system prompt {system!r}" if system else ""
    prompts = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    unsteered = f"mean of {prompts} prompts, less the unsteered {margin:+.2f} of {questions}"
    what = OPERATIONS[operation].heading.format(vector=vector, norm=norm)
    head = [
        f"{evaluation}{with_system}: effect of {what} at {positions} in {model}",
        f"log p(matching) - log p(not matching), {unsteered}",
        f"MASS: what all answers have together (unsteered {mass:.3f}), the least over the multipliers",
    ]
    return "\n".join([*head, plain_table(header, rows), _verdict(found, controls, done)])


def _verdict(found: Sequence[Effect], controls: Controls, done: str = "") -> str:
    """The peak, and whether it stands outside the controls; said only with enough of them."""
    peak = max(found, key=lambda one: abs(one.effect))
    how = done if peak.multiplier is None else f"multiplier {peak.multiplier:+g}"
    said = [f"largest effect: {peak.effect:+.2f} at layer {peak.layer}, {how}"]
    if not controls:
        said.append(
            f"no controls to hold it against: what chance gives isn't known "
            f"(`controls: {{random_vectors: {ENOUGH_CONTROLS}}}` in the grid adds them)"
        )
    places = {one.place for one in found}
    own = frozenset(one.vector_sha256 for one in found)
    for kind in ("random", "shuffled"):
        runs = [run for (control, _), run in controls.items() if control == kind]
        if not runs:
            continue
        largest = max(abs(one.effect) for run in runs for one in run)
        # a control counts where it has every row that the vector has, and is a vector of its own
        whole = [run for run in runs if {one.place for one in run} == places]
        distinct = {frozenset(one.vector_sha256 for one in run) for run in whole} - {own}
        said.append(f"largest of {len(runs)} {kind} vectors: {largest:.2f}")
        if len(whole) < len(runs):
            said.append(f"only {len(whole)} of them have all rows of the vector")
        if len(distinct) < ENOUGH_CONTROLS:
            said.append(
                f"too few to say more: {len(distinct)} whole and distinct, {ENOUGH_CONTROLS} are needed"
            )
        elif abs(peak.effect) > largest:
            said.append(
                f"the peak is outside the band of the {kind} vectors (5% level, for this table alone)"
            )
        else:
            said.append(f"the peak is NOT outside the band of the {kind} vectors: no effect is shown")
    return "\n".join(said)
