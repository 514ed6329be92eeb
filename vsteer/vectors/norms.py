"""How long directions are: `raw`, `unit`, `caa`, `deviation`, `residual:F`. One function, `with_norm`.

`unit` needs only where a direction points, so any vector can have it. `residual` and `deviation` need what
extraction measured: the stream's mean length, and its standard deviation along the direction. `raw` can't be
got back once it was changed, and `caa` is the mean of raw lengths: both are refused for a vector that isn't
raw.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vsteer.errors import UsageError, VectorError
from vsteer.protocol import Direction
from vsteer.vectors.checks import missing_layers, same_width
from vsteer.vectors.vector import SteeringVector

KINDS = "raw, unit, caa, deviation, or residual:F, such as residual:0.1"


def length(direction: Direction) -> float:
    """The Euclidean norm, summed exactly, so that every machine gets the same."""
    return math.sqrt(math.fsum(np.square(direction, dtype=np.float64).tolist()))


def scaled_to(direction: Direction, target: float, name: str, layer: int) -> Direction:
    """The direction at the length `target`."""
    old = length(direction)
    if not old:
        raise VectorError(
            f"{name!r} is zero at layer {layer}, and a zero direction has no length to change",
            "leave that layer out, or look at how the vector was made",
        )
    scaled = direction.astype(np.float64) * (target / old)
    return np.asarray(scaled, np.float32)


def with_norm(vector: SteeringVector, norm: str, others: Sequence[SteeringVector] = ()) -> SteeringVector:
    """The vector with another norm. `others` are the further behaviours whose lengths `caa` averages."""
    kind, fraction = parse_norm(norm)
    if others and kind != "caa":
        raise UsageError(f"other vectors have no part in the norm {norm}", "only caa averages over several")
    match kind:
        case "raw":
            return _raw(vector)
        case "unit":
            targets = dict.fromkeys(vector.layers, 1.0)
        case "caa":
            targets = _mean_lengths(vector, others)
        case "deviation":
            targets = dict(_deviations(vector))
        case _:
            targets = {layer: fraction * norm for layer, norm in _stream_norms(vector).items()}
            norm = f"residual:{fraction}"
    directions = {
        layer: scaled_to(vector.directions[layer], targets[layer], vector.name, layer)
        for layer in vector.layers
    }
    derived = vector.origin.derived
    if kind == "caa":
        derived += (f"caa norm over {', '.join(v.name for v in (vector, *others))}",)
    return replace(vector, directions=directions, origin=replace(vector.origin, norm=norm, derived=derived))


def parse_norm(norm: str) -> tuple[str, float]:
    """The kind of norm, and the fraction of `residual:F` (0 for the others)."""
    kind, _, number = norm.partition(":")
    if kind in {"raw", "unit", "caa", "deviation"} and norm == kind:
        return kind, 0.0
    if kind == "residual":
        try:
            fraction = float(number)
        except ValueError:
            fraction = math.nan
        if 0 < fraction < math.inf:
            return kind, fraction
        raise UsageError(f"{norm!r} names no fraction of the stream's length", "give one, as in residual:0.1")
    raise UsageError(f"unknown norm {norm!r}", f"the norms are {KINDS}")


def _raw(vector: SteeringVector) -> SteeringVector:
    """The vector itself. Where its norm is unknown, the user's word counts that it is raw."""
    if vector.origin.norm == "raw":
        return vector
    if not vector.origin.norm:
        derived = (*vector.origin.derived, "taken to be raw")
        return replace(vector, origin=replace(vector.origin, norm="raw", derived=derived))
    raise VectorError(
        f"{vector.name!r} has the norm {vector.origin.norm}, and its raw lengths are gone",
        "start from the raw vector's file",
    )


def _mean_lengths(vector: SteeringVector, others: Sequence[SteeringVector]) -> dict[int, float]:
    if not others:
        raise UsageError(
            "the norm caa is the mean length over several behaviours, and there is only one",
            "name the other behaviours' vectors (--with)",
        )
    for each in (vector, *others):
        if each.origin.norm != "raw":
            raise VectorError(
                f"the norm caa averages raw lengths, but {each.name!r} has the norm "
                f"{each.origin.norm or 'unknown'}",
                "start from the raw vectors' files; where an imported one is raw, say so: --norm raw",
            )
        same_width(vector, each)
        missing_layers(vector, each)
        if len({v.origin.model_sha256 for v in (vector, each)} - {""}) > 1:
            raise VectorError(
                f"{vector.name!r} and {each.name!r} come from different models",
                "the norm caa compares behaviours of one model",
            )
    return {
        layer: math.fsum(length(each.directions[layer]) for each in (vector, *others)) / (1 + len(others))
        for layer in vector.layers
    }


def _deviations(vector: SteeringVector) -> Mapping[int, float]:
    if missing := [layer for layer in vector.layers if not vector.deviations.get(layer)]:
        raise VectorError(
            f"{vector.name!r} doesn't say how far the stream spreads along it at layer {missing[0]}",
            "deviation needs what extraction measures; extract the vector here and anew, or use raw or unit",
        )
    return vector.deviations


def _stream_norms(vector: SteeringVector) -> Mapping[int, float]:
    if missing := [layer for layer in vector.layers if layer not in vector.stream_norms]:
        raise VectorError(
            f"{vector.name!r} doesn't say how long the stream is at layer {missing[0]}",
            "residual needs what extraction measures; extract the vector here, or use raw or unit",
        )
    return vector.stream_norms
