"""A run's statistics: worked out of its rows and put beside them, one table a file.

The functions here choose what is compared with what, and record what was left out and why a number is
missing; how a number is worked out stands in intervals, peaks, doses, curves and scaling.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsteer.analysis.doses import FEWEST_POINTS, PARAMETERS, fit_line, fit_logistic, isotonic
from vsteer.analysis.intervals import SEED, Means, Numbers, mean_intervals, why_no_interval
from vsteer.analysis.item_values import Condition, Effects, ItemValues
from vsteer.analysis.peaks import FEWEST_TO_SPLIT, SPLITS, band, best_layer, held_out, near_best
from vsteer.analysis.scaling import scaling_records
from vsteer.errors import VsteerError
from vsteer.operations import OPERATIONS
from vsteer.results.statistics_files import (
    ENOUGH_CONTROLS,
    MEASURES,
    STATISTICS_FOLDER,
    TABLES,
    fingerprint,
    make_folder,
    statistics_are_current,
    write_table,
)
from vsteer.results.views import connect_runs, readable
from vsteer.store.database import quoted
from vsteer.store.lock import FolderLock
from vsteer.store.sound import require_run
from vsteer.vectors import run_norms

log = logging.getLogger(__name__)

MEMORY = "1GB"
STEERED = ("model", "vector", "norm", "positions", "operation", "system")
# No effect can be larger, so no end of an interval is.
LARGEST = {"logit_diff": np.inf, "p_match": 1.0}

Record = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """The statistics that were written: how many rows each table has."""

    folder: Path
    rows: Mapping[str, int]


def write_statistics(folder: Path) -> Written:
    """Compute every table for a run as its rows stand, replacing what was there."""
    require_run(folder)
    # The statistics know the relative norms, and are no longer current when that table is made anew.
    if why := run_norms.bring_up_to_date(folder):
        log.warning("relative_norm is not known: %s", why)
    made_of = {"fingerprint": fingerprint(folder), "seed": SEED}
    make_folder(folder)
    lock = FolderLock(folder / STATISTICS_FOLDER)
    try:
        records = _tables(folder)
        for name in TABLES:
            write_table(folder, name, records[name], made_of)
    finally:
        lock.release()
    return Written(folder / STATISTICS_FOLDER, {name: len(records[name]) for name in TABLES})


def bring_up_to_date(folder: Path) -> str | None:
    """Write the statistics at a run's end, which is not lost where this fails; what to warn of, or None."""
    try:
        if not statistics_are_current(folder):
            write_statistics(folder)
    except Exception as error:
        what = error.message if isinstance(error, VsteerError) else repr(error)
        return (
            f"warning: the rows are whole, but have no statistics: {what}\n"
            f"hint: `vsteer stats {folder}` tries again"
        )
    return None


def _tables(folder: Path) -> Mapping[str, Sequence[Record]]:
    scratch = folder / STATISTICS_FOLDER / ".scratch"
    tables: dict[str, list[Record]] = {name: [] for name in TABLES}
    try:
        with readable(folder), connect_runs([folder]) as database:
            database.execute(f"set memory_limit = {quoted(MEMORY)}")
            database.execute(f"set temp_directory = {quoted(str(scratch))}")
            database.execute("set preserve_insertion_order = false")
            values = ItemValues(database)
            for block in values.blocks():
                tables["intervals"] += interval_records(block)
                for peak in peak_records(block):
                    tables["peaks"].append(peak)
                    tables["bands"] += band_records(block, peak) if peak["items"] else ()
            for sweep in values.sweeps():
                for measure in MEASURES:
                    tables["asymmetries"] += asymmetry_records(sweep, measure)
                    tables["doses"] += dose_records(sweep, measure)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    tables["scaling"] = scaling_records(tables["peaks"])
    return tables


def interval_records(block: Effects) -> Iterator[Record]:
    """The mean effect of each configuration over its own items, by each measure."""
    for measure in MEASURES:
        values = [row[np.isfinite(row)] for row in block.effects[measure]]
        for condition, own, used, found in zip(
            block.conditions, values, block.rows[measure], intervals_of(values), strict=True
        ):
            yield {
                "evaluation": condition.evaluation,
                "config_id": condition.config_id,
                "measure": measure,
                "items": len(own),
                "rows_left_out": max(0, condition.rows - int(used)),
                **found,
                "method": "bca" if found["low"] is not None else None,
                "seed": SEED,
                "why": why_no_interval(own),
            }


def intervals_of(values: Sequence[Numbers]) -> list[Record]:
    """Mean, low, high, se and p_value of each; those with equally many items are computed together."""
    found: list[Record] = [{} for _ in values]
    lengths = np.array([len(each) for each in values])
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        means = mean_intervals(np.stack([values[place] for place in places]))
        for row, place in enumerate(places):
            found[place] = _one(means, row)
    return found


def _one(means: Means, row: int) -> Record:
    names = ("mean", "low", "high", "se", "p_value")
    return {name: _number(getattr(means, name)[row]) for name in names}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def swept(block: Effects) -> list[Condition]:
    """The vector's own configurations that steer a single layer, by layer."""
    own = [one for one in block.conditions if not one.control and one.layer is not None]
    return sorted(own, key=lambda one: one.layer or 0)


def peak_records(block: Effects) -> Iterator[Record]:
    """The peak of a block's curve by each measure, on items that have an effect at every layer."""
    curve = swept(block)
    for measure in MEASURES if curve else ():
        pushes = _values(block, curve, measure) * curve[0].direction
        items = pushes.shape[1]
        best = best_layer(pushes) if items else 0
        record = {
            **_head(curve[best], measure),
            "billions": curve[best].billions,
            "kl": curve[best].kl,
            "level": curve[best].level,
            "layers_swept": len(curve),
            "items": items,
            "items_left_out": curve[best].planned_items - items,
            "splits": SPLITS,
            "seed": SEED,
        }
        yield record | (
            _peak(pushes, curve, best, measure) if items else {"why": "no item has an effect at every layer"}
        )


def _peak(pushes: Numbers, curve: Sequence[Condition], best: int, measure: str) -> Record:
    return {
        "layer": curve[best].layer,
        "depth": curve[best].depth,
        "effect": float(pushes[best].mean()) * curve[best].direction,
        "relative_norm": curve[best].relative_norm,
        "near_layers": [curve[place].layer for place in np.flatnonzero(near_best(pushes))]
        if pushes.shape[1] > 1
        else None,
        **_held_out(pushes, curve, LARGEST[measure]),
    }


def _held_out(pushes: Numbers, curve: Sequence[Condition], largest: float) -> Record:
    if pushes.shape[1] < FEWEST_TO_SPLIT:
        return {"why": f"no held-out effect: fewer than {FEWEST_TO_SPLIT} items"}
    found, direction = held_out(pushes), curve[0].direction
    ends = sorted(end * direction for end in found.interval())
    low, high = (_number(np.clip(end, -largest, largest)) for end in ends)
    return {
        "heldout_effect": found.effect * direction,
        "low": low,
        "high": high,
        "heldout_layer": curve[found.layer].layer,
        "heldout_share": float(found.chosen[found.layer]),
        "why": why_no_interval(found.values),
    }


def band_records(block: Effects, peak: Record) -> Iterator[Record]:
    """A block's curve beside its control vectors of each kind, as far as they count."""
    curve, measure = swept(block), str(peak["measure"])
    items = block.whole(curve, measure)
    effects = block.effects[measure][block.places(curve)][:, items]
    counted: dict[str, dict[int | None, dict[int | None, Condition]]] = {}
    for one in block.conditions:
        if one.counted:
            counted.setdefault(one.control, {}).setdefault(one.control_index, {})[one.layer] = one
    for kind, vectors in block.control_vectors.items():
        controls = counted.get(kind, {}).values()
        # one that counts has an effect wherever the vector has one, so it has every layer of the curve
        places = [block.places([each[one.layer] for one in curve]) for each in controls]
        found = band(effects, block.effects[measure][places][:, :, items] if places else np.zeros((0, 1, 1)))
        at = curve[found.layer]
        too_few = f"no claim: {len(places)} whole and distinct controls, and it takes {ENOUGH_CONTROLS}"
        yield {
            **_head(at, measure),
            "config_id": peak["config_id"],
            "control": kind,
            "largest": found.largest,
            "largest_layer": at.layer,
            "largest_relative_norm": at.relative_norm,
            "layers_swept": len(curve),
            "items": int(items.sum()),
            "items_left_out": peak["items_left_out"],
            "controls": len(places),
            "controls_left_out": vectors - len(places),
            "control_max": float(found.maxima.max()) if places else None,
            "control_median": float(np.median(found.maxima)) if places else None,
            "exceeded_by": found.exceeded_by,
            "p_value": found.p_value if places else None,
            "outside": found.outside,
            "why": too_few if found.outside is None else None,
        }


def asymmetry_records(sweep: Effects, measure: str) -> Iterator[Record]:
    """The asymmetry at each layer that has m and -m, or a KL dose to both sides, on items that have both."""
    at = {(one.layers, one.kl, one.level): one for one in sweep.conditions}
    pairs = [
        (minus, plus)
        for plus in sweep.conditions
        if plus.level and plus.level > 0 and (minus := at.get((plus.layers, plus.kl, -plus.level)))
    ]
    values = [-_values(sweep, pair, measure).sum(0) for pair in pairs]
    for (minus, plus), own, found in zip(pairs, values, intervals_of(values), strict=True):
        yield {
            **_head(plus, measure),
            "minus_config_id": minus.config_id,
            "layers": list(plus.layers),
            "relative_norm": plus.relative_norm,
            "items": len(own),
            "items_left_out": plus.planned_items - len(own),
            **found,
            "asymmetry": found["mean"],
            "seed": SEED,
            "why": why_no_interval(own),
        }


def dose_records(sweep: Effects, measure: str) -> Iterator[Record]:
    """Each layer's means over the multipliers, on items that have all of them.

    The unsteered model is at 0, unless the operation does something with a multiplier of 0 too.
    """
    doses: dict[tuple[int, ...], list[Condition]] = {}
    for one in sweep.conditions:
        if one.multiplier is not None:
            doses.setdefault(one.layers, []).append(one)
    for layers, family in doses.items():
        family.sort(key=_multiplier)
        items = sweep.whole(family, measure)
        effects = sweep.effects[measure][sweep.places(family)][:, items]
        baseline = sweep.baselines[measure][sweep.places(family)][:, items].mean(0)
        multipliers = np.array([_multiplier(one) for one in family])
        if not OPERATIONS[family[0].operation].acts_at_zero:
            zero = int(np.searchsorted(multipliers, 0))
            multipliers, effects = np.insert(multipliers, zero, 0.0), np.insert(effects, zero, 0.0, axis=0)
        levels = (baseline + effects).T
        largest = max(family, key=lambda one: (abs(_multiplier(one)), _multiplier(one)))
        yield {
            **_head(largest, measure),
            "layers": list(layers),
            "multipliers": multipliers.tolist(),
            "relative_norms": [0.0 if not one else _relative(family, one) for one in multipliers.tolist()],
            "items": len(levels),
            "items_left_out": largest.planned_items - len(levels),
            "fit": "line" if measure == "logit_diff" else "logistic",
            "residual_df": len(multipliers) - PARAMETERS,
            "seed": SEED,
            **_dose(multipliers, levels, measure),
        }


def _dose(multipliers: Numbers, levels: Numbers, measure: str) -> Record:
    if not len(levels):
        return {"means": [], "why": "no item has an effect at every multiplier"}
    means = levels.mean(0)
    record: Record = {"means": means.tolist()}
    if len(multipliers) < FEWEST_POINTS:
        return record | {"why": f"no fit: fewer than {FEWEST_POINTS} multipliers, 0 included"}
    monotone = isotonic(means)
    record |= {
        "isotonic": monotone.fitted.tolist(),
        "isotonic_direction": monotone.direction,
        "isotonic_r2": monotone.r2,
    }
    line = measure == "logit_diff"
    fit = fit_line(multipliers, levels) if line else fit_logistic(multipliers, levels)
    if fit is None:
        return record | {"why": "no fit: the probabilities are all 0 or 1, or leap from one to the other"}
    interval = _one(fit.interval, 0)
    return record | {
        "intercept": fit.intercept,
        "slope": fit.slope,
        "slope_low": interval["low"],
        "slope_high": interval["high"],
        "midpoint": fit.midpoint,
        "fit_r2": fit.r2,
        "why": why_no_interval(fit.per_item),
    }


def _head(one: Condition, measure: str) -> Record:
    return {
        "evaluation": one.evaluation,
        "config_id": one.config_id,
        "measure": measure,
        "multiplier": one.multiplier,
        **{name: getattr(one, name) for name in STEERED},
    }


def _values(effects: Effects, wanted: Sequence[Condition], measure: str) -> Numbers:
    """[configuration, item], over the items that all of them have."""
    return effects.effects[measure][effects.places(wanted)][:, effects.whole(wanted, measure)]


def _multiplier(one: Condition) -> float:
    assert one.multiplier is not None  # a dose has one
    return one.multiplier


def _relative(family: Sequence[Condition], multiplier: float) -> float | None:
    return next(one.relative_norm for one in family if one.multiplier == multiplier)
