"""Vectors made from vectors: random ones of the same lengths, one layer's for every layer, another model's,
what is orthogonal to another, sums, and sparse ones.

Each records in `origin.derived` what it did, and to which bytes. Stream norms stay where they still hold:
they are a property of model, data and token, not of where a direction points. A norm keeps its name where it
still holds; else it becomes "derived", which neither raw nor caa lengths can be made from.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace

import numpy as np

from vsteer.errors import UsageError, VectorError
from vsteer.protocol import Direction
from vsteer.vectors.checks import missing_layers, same_width
from vsteer.vectors.norms import length, scaled_to
from vsteer.vectors.vector import Origin, SteeringVector


def random_like(vector: SteeringVector, seed: int) -> SteeringVector:
    """Random directions of the vector's length at each layer: the control for "any push would do this".

    Each layer's direction depends on seed, layer and width alone. RandomState, because numpy promises that
    its numbers stay the same in all later versions.
    """
    if not 0 <= seed < 2**63:
        raise UsageError(f"the seed {seed} is out of range", "give a whole number from 0 on")
    directions = {}
    for layer, direction in vector.directions.items():
        generator = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32, layer])
        noise = generator.standard_normal(len(direction)).astype(np.float32)
        directions[layer] = scaled_to(noise, length(direction), vector.name, layer)
    what = f"random, seed {seed}, lengths of {mention(vector)}"
    random = _derived(vector, what, directions, vector.origin.norm, method="random")
    return replace(random, name=f"{vector.name}-random-{seed}")


def one_layer(vector: SteeringVector, layer: int, layers: Iterable[int] = ()) -> SteeringVector:
    """The direction of `layer` for every layer of the vector, or for `layers`."""
    if layer not in vector.directions:
        raise VectorError(
            f"{vector.name!r} has no direction for layer {layer}",
            f"it has layers {vector.layers[0]} to {vector.layers[-1]}",
        )
    targets = sorted(layers) or vector.layers
    directions = dict.fromkeys(targets, vector.directions[layer])
    norm = vector.origin.norm if vector.origin.norm in {"raw", "unit", ""} else "derived"
    return _derived(vector, f"layer {layer} of {mention(vector)} at every layer", directions, norm)


def for_model(vector: SteeringVector, layers: int, hidden_size: int) -> SteeringVector:
    """The vector on another model, of `layers` decoder blocks: the same numbers, their dimensions checked."""
    if vector.hidden_size != hidden_size:
        raise VectorError(
            f"{vector.name!r} is {vector.hidden_size} wide, but the model's stream is {hidden_size} wide",
            "a vector works only in models of its width",
        )
    if vector.layers[-1] >= layers:
        raise VectorError(
            f"{vector.name!r} has layer {vector.layers[-1]}, but the model has only layers 0 to {layers - 1}",
            "take one layer's direction for every layer, or leave the others out; a first row for the "
            "embeddings is no layer",
        )
    measured = vector.origin.norm.startswith(("residual", "deviation"))
    norm = "derived" if measured else vector.origin.norm
    model = vector.origin.model or "an unknown model"
    moved = _derived(vector, f"from {model} to a model of {layers} layers", vector.directions, norm)
    return replace(moved, stream_norms={}, origin=replace(moved.origin, model_layers=layers))


def orthogonal_to(vector: SteeringVector, other: SteeringVector) -> SteeringVector:
    """Per layer the part of the vector that is orthogonal to `other`."""
    same_width(vector, other)
    missing_layers(vector, other)
    directions = {}
    for layer, direction in vector.directions.items():
        along = other.directions[layer].astype(np.float64)
        square = float(along @ along)
        if not square:
            raise VectorError(
                f"{other.name!r} is zero at layer {layer}, and nothing is orthogonal to zero",
                "leave that layer out",
            )
        wide = direction.astype(np.float64)
        rest = wide - along * (float(wide @ along) / square)
        # What is left of parallel vectors is rounding, which points anywhere.
        if 0 < float(wide @ wide) * 1e-12 >= float(rest @ rest):
            raise VectorError(
                f"{vector.name!r} and {other.name!r} are parallel at layer {layer}: nothing is left",
                "they are the same direction there",
            )
        directions[layer] = rest.astype(np.float32)
    return _derived(vector, f"orthogonal to {mention(other)}", directions, _changed_norm(vector))


def sum_of(vectors: Sequence[SteeringVector], weights: Sequence[float] = ()) -> SteeringVector:
    """The sum per layer, each times its weight (1 where none are given)."""
    if not vectors:
        raise UsageError("there is nothing to add up", "name at least one vector")
    weights = list(weights) or [1.0] * len(vectors)
    if len(weights) != len(vectors) or not all(math.isfinite(weight) for weight in weights):
        raise UsageError(
            f"{len(vectors)} vectors can't have the weights {weights}", "give one number a vector"
        )
    first = vectors[0]
    for other in vectors[1:]:
        same_width(first, other)
        missing_layers(first, other)
        missing_layers(other, first)
    directions = {
        layer: _weighted_sum([vector.directions[layer] for vector in vectors], weights)
        for layer in first.layers
    }
    terms = [f"{weight:g} * {mention(vector)}" for weight, vector in zip(weights, vectors, strict=True)]
    origin = _shared([vector.origin for vector in vectors])
    alike = all(vector.stream_norms == first.stream_norms for vector in vectors)
    return SteeringVector(
        "+".join(vector.name for vector in vectors),
        directions,
        first.stream_norms if alike else {},
        replace(origin, method="sum", norm=_changed_norm(*vectors), derived=(f"sum of {', '.join(terms)}",)),
    )


def sparsified(vector: SteeringVector, fraction: float) -> SteeringVector:
    """Per layer the largest `fraction` of the dimensions by magnitude; the others become 0.

    The fraction is rounded to whole dimensions, at least one. Where magnitudes are equal, the earlier stays.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"{fraction:g} is no fraction of the dimensions", "give one above 0, at most 1")
    keep = max(1, round(fraction * vector.hidden_size))
    directions = {}
    for layer, direction in vector.directions.items():
        kept = np.argsort(-np.abs(direction), kind="stable")[:keep]
        sparse = np.zeros_like(direction)
        sparse[kept] = direction[kept]
        directions[layer] = sparse
    what = f"sparsified to {keep} of {vector.hidden_size} dimensions by magnitude"
    return _derived(vector, what, directions, _changed_norm(vector))


def mention(vector: SteeringVector) -> str:
    """A vector's name and the hash of its numbers, for others' origins."""
    return f"{vector.name} ({content_sha256(vector)[:12]})"


def content_sha256(vector: SteeringVector) -> str:
    """The hash of layers and directions, whatever file they are in."""
    digest = hashlib.sha256()
    for layer in vector.layers:
        digest.update(f"|{layer}:".encode())
        digest.update(np.ascontiguousarray(vector.directions[layer], "<f4").tobytes())
    return digest.hexdigest()


def _derived(
    vector: SteeringVector, what: str, directions: Mapping[int, Direction], norm: str, method: str = ""
) -> SteeringVector:
    origin = replace(
        vector.origin,
        norm=norm,
        method=method or vector.origin.method,
        derived=(*vector.origin.derived, what),
    )
    stream_norms = {layer: norm for layer, norm in vector.stream_norms.items() if layer in directions}
    return replace(vector, directions=directions, stream_norms=stream_norms, origin=origin, deviations={})


def _weighted_sum(directions: Sequence[Direction], weights: Sequence[float]) -> Direction:
    total = np.zeros(len(directions[0]), np.float64)
    for direction, weight in zip(directions, weights, strict=True):
        total += weight * direction.astype(np.float64)
    return total.astype(np.float32)


def _changed_norm(*vectors: SteeringVector) -> str:
    """The norm once something else changed the lengths: raw stays raw, since nothing was rescaled."""
    norms = {vector.origin.norm for vector in vectors}
    return norms.pop() if norms in ({"raw"}, {""}) else "derived"


def _shared(origins: Sequence[Origin]) -> Origin:
    """What all have in common; the rest is unknown."""
    names = [field.name for field in fields(Origin)]
    values = {name: {getattr(origin, name) for origin in origins} for name in names}
    return Origin(**{name: found.pop() for name, found in values.items() if len(found) == 1})
