"""How peaks change with the model's size: three families over the held-out peaks of several models.

A family is preferred only where the data can tell: when AIC and AICc both make it twenty times as likely as
either of the others, and it also predicts each model best from the rest. AICc alone won't do: with six models
its correction for the exponential's third parameter is worth a million to one, whatever the points are. With
the papers' three sizes the exponential has as many parameters as points, and nothing is preferred.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vsteer.analysis.curves import EXPONENTIAL, FAMILIES, Curve, Family, fit
from vsteer.analysis.intervals import Numbers

KEYS = ("evaluation", "measure", "vector", "norm", "positions", "operation", "system", "kl", "level")
# Twenty to one, in Akaike's criterion.
CLEARLY = 2 * math.log(20)


@dataclass(frozen=True)
class Compared:
    """A family over some points, and how it compares with the others."""

    family: Family
    curve: Curve | None
    aicc: float | None
    loo_rmse: float | None
    preferred: bool | None
    why: tuple[str, ...]


def compare(sizes: Numbers, values: Numbers) -> list[Compared]:
    """Every family over the points, each point counting alike."""
    curves = {family.name: fit(family, sizes, values) for family in FAMILIES}
    aiccs = {family.name: aicc(family, curves[family.name], values) for family in FAMILIES}
    errors = {family.name: loo_rmse(family, sizes, values) for family in FAMILIES}
    best, why_none = _preferred(curves, aiccs, errors, len(values))
    return [
        Compared(
            family,
            curves[family.name],
            aiccs[family.name],
            errors[family.name],
            None if best is None else family.name == best,
            (*_about(family, curves[family.name], sizes), *([why_none] if best is None else [])),
        )
        for family in FAMILIES
    ]


def aicc(family: Family, curve: Curve | None, values: Numbers) -> float | None:
    """Akaike's criterion, corrected for few points; the residuals' variance is a parameter too."""
    points, parameters = len(values), len(family.parameters) + 1
    if curve is None or points < parameters + 2:
        return None
    # smaller residuals are rounding; without a floor an exact fit would be infinitely good
    rss = max(curve.rss, points * (1e-9 * float(np.abs(values).max())) ** 2)
    if rss == 0:
        return None
    return points * math.log(rss / points) + 2 * parameters + correction(family, points)


def correction(family: Family, points: int) -> float:
    """What AICc adds to AIC."""
    parameters = len(family.parameters) + 1
    return 2 * parameters * (parameters + 1) / (points - parameters - 1)


def loo_rmse(family: Family, sizes: Numbers, values: Numbers) -> float | None:
    """How well each point is predicted by a fit to the others, which keeps a degree of freedom."""
    if len(sizes) < len(family.parameters) + 2:
        return None
    errors = []
    for left_out in range(len(sizes)):
        rest = np.arange(len(sizes)) != left_out
        curve = fit(family, sizes[rest], values[rest])
        if curve is None:
            return None
        errors.append(float(curve.at(sizes[[left_out]])[0] - values[left_out]))
    return float(np.sqrt(np.mean(np.square(errors))))


def scaling_records(peaks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table `scaling`, from the records of the table `peaks` of one run or many."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for peak in peaks:
        groups.setdefault(tuple(peak[name] for name in KEYS), []).append(peak)
    return [record for group in groups.values() for record in _of_group(group)]


def _of_group(peaks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Peaks that differ in nothing but the model."""
    models: dict[str, Mapping[str, Any]] = {}
    for peak in peaks:
        # a model that is there twice (two runs, two dtypes) counts once
        usable = peak["billions"] is not None and peak.get("heldout_effect") is not None
        if usable and (peak["model"] not in models or peak["items"] > models[peak["model"]]["items"]):
            models[peak["model"]] = peak
    chosen = sorted(models.values(), key=lambda peak: (peak["billions"], peak["model"]))
    sizes = np.array([peak["billions"] for peak in chosen], float)
    effects = np.array([peak["heldout_effect"] for peak in chosen], float)
    shared = {name: peaks[0][name] for name in KEYS} | {
        # each model has its own where they have a dose in common
        "multiplier": None if peaks[0]["kl"] else peaks[0]["multiplier"],
        "models": [peak["model"] for peak in chosen],
        "billions": sizes.tolist(),
        "effects": effects.tolist(),
        "depths": [peak["depth"] for peak in chosen],
        "relative_norms": [peak["relative_norm"] for peak in chosen],
        "models_left_out": len(peaks) - len(chosen),
        "points": len(chosen),
    }
    return [{**shared, **_record(found)} for found in compare(sizes, effects)]


def _record(found: Compared) -> dict[str, Any]:
    record: dict[str, Any] = {
        "family": found.family.name,
        "residual_df": None,
        "rss": None,
        "aicc": found.aicc,
        "loo_rmse": found.loo_rmse,
        "preferred": found.preferred,
        "why": "; ".join(found.why) or None,
    }
    curve = found.curve
    for name in EXPONENTIAL.parameters:
        low, high = curve.intervals.get(name, (None, None)) if curve else (None, None)
        value = curve.values.get(name) if curve and not curve.at_the_end else None
        record |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return record | ({"residual_df": curve.residual_df, "rss": curve.rss} if curve else {})


def _about(family: Family, curve: Curve | None, sizes: Numbers) -> list[str]:
    wanted = len(family.parameters)
    if curve is None:
        return [f"no fit: {wanted} parameters, and models of {len(np.unique(sizes))} different sizes"]
    remarks = []
    if curve.at_the_end:
        remarks.append("no fit: no rate is best, the points show no such curve")
    if curve.residual_df == 0:
        remarks.append(
            f"no residual degrees of freedom: {wanted} parameters for {curve.points} models, so the curve "
            "goes through every point, whatever they are, and there is no interval"
        )
    elif any(None in ends for ends in curve.intervals.values()):
        remarks.append("an interval without an end: the points don't bound that parameter")
    return remarks


def _preferred(
    curves: Mapping[str, Curve | None],
    aiccs: Mapping[str, float | None],
    errors: Mapping[str, float | None],
    points: int,
) -> tuple[str | None, str]:
    """The family that the data prefer; or None, and why none."""
    corrected = {name: value for name, value in aiccs.items() if value is not None}
    if len(corrected) < len(aiccs) or any(value is None for value in errors.values()):
        fewest = len(EXPONENTIAL.parameters) + 3
        return None, f"no family is preferred: that takes {fewest} models or more"
    plain = {family.name: corrected[family.name] - correction(family, points) for family in FAMILIES}
    first = min(corrected, key=lambda name: corrected[name])
    for criterion in (corrected, plain):
        for other in criterion:
            if other != first and criterion[other] - criterion[first] < CLEARLY:
                return None, f"no family is preferred: {first} is not 20 times as likely as {other}"
    predicts = min(errors, key=lambda name: errors[name] or 0.0)
    if predicts != first:
        return (
            None,
            f"no family is preferred: {first} fits best, but {predicts} predicts models left out best",
        )
    curve = curves[first]
    if curve is None or curve.at_the_end:
        return None, "no family is preferred: the one that fits best is none of these curves"
    return first, ""
