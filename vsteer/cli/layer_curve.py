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
from vsteer.store.views import connect

EFFECTS = """
with scored as (
    select * from rows
    where kind = 'choice' and status = 'ok' and logit_diff is not null and len(layers) <= 1
),
baseline as (
    select model, evaluation, system, prompt_id, logit_diff from scored where vector = ''
)
select s.model, s.evaluation, s.system, s.vector, s.norm, s.positions, s.control, s.control_index,
       s.multiplier, s.layer, avg(s.logit_diff - b.logit_diff), avg(s.total_mass)
from scored s join baseline b using (model, evaluation, system, prompt_id)
where s.vector <> ''
group by all order by all
"""
BASELINES = """
select model, evaluation, system, avg(logit_diff), avg(total_mass), count(*)
from rows where kind = 'choice' and status = 'ok' and vector = '' and logit_diff is not null
group by all order by all
"""
# With so many of a kind, a peak outside all of theirs is outside at the 5% level.
ENOUGH_CONTROLS = 19


@dataclass(frozen=True)
class Effect:
    layer: int
    multiplier: float
    effect: float
    mass: float


Controls = Mapping[tuple[str, int], list[Effect]]


def layer_curves(folder: Path) -> str:
    database = connect(folder)
    baselines = {row[:3]: row[3:] for row in database.execute(BASELINES).fetchall()}
    steered: dict[tuple[str, ...], list[Effect]] = defaultdict(list)
    controls: dict[tuple[str, ...], dict[tuple[str, int], list[Effect]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in database.execute(EFFECTS).fetchall():
        group, control, index, found = row[:6], row[6], row[7], Effect(row[9], row[8], row[10], row[11])
        if control in ("random", "shuffled"):
            controls[group][control, index].append(found)
        else:
            steered[group].append(found)
    parts = [_curve(group, found, baselines[group[:3]], controls[group]) for group, found in steered.items()]
    return "\n\n".join(parts)


def _curve(
    group: tuple[str, ...], found: Sequence[Effect], baseline: tuple[Any, ...], controls: Controls
) -> str:
    model, evaluation, system, vector, norm, positions = group
    margin, mass, questions = baseline
    multipliers = sorted({one.multiplier for one in found})
    by_place = {(one.layer, one.multiplier): one for one in found}
    layers = sorted({one.layer for one in found})
    header = ["LAYER", *(f"{m:+g}" for m in multipliers), "MASS", *(["CONTROLS"] if controls else [])]
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
    unsteered = f"mean of {questions} prompts, less the unsteered {margin:+.2f}"
    head = [
        f"{evaluation}{with_system}: effect of {vector} (norm {norm}) at {positions} in {model}",
        f"log p(matching) - log p(not matching), {unsteered}",
        f"MASS: what all answers have together (unsteered {mass:.3f}), the least over the multipliers",
    ]
    return "\n".join([*head, plain_table(header, rows), _verdict(found, controls)])


def _verdict(found: Sequence[Effect], controls: Controls) -> str:
    """The peak, and whether it stands outside the controls; said only with enough of them."""
    peak = max(found, key=lambda one: abs(one.effect))
    said = [f"largest effect: {peak.effect:+.2f} at layer {peak.layer}, multiplier {peak.multiplier:+g}"]
    for kind in ("random", "shuffled"):
        largest = [
            max(abs(one.effect) for one in run) for (control, _), run in controls.items() if control == kind
        ]
        if not largest:
            continue
        said.append(f"largest of {len(largest)} {kind} vectors over the same layers: {max(largest):.2f}")
        if len(largest) >= ENOUGH_CONTROLS:
            outside = abs(peak.effect) > max(largest)
            said.append(
                f"the peak is outside the band of the {kind} vectors (5% level)"
                if outside
                else f"the peak is NOT outside the band of the {kind} vectors: no effect is shown"
            )
        else:
            said.append(f"too few of them to say more: {ENOUGH_CONTROLS} are needed")
    return "\n".join(said)
