"""A vector with few dimensions left: those that an attribution gives the effect to, and three baselines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vsteer.vectors.derive import mention
from vsteer.vectors.norms import length, scaled_to
from vsteer.vectors.vector import SteeringVector

# The paper's thresholds.
RATIOS = (0.1, 0.3, 0.5, 1.0, 1.5, 2.0, 2.5)
BASELINES = ("effect", "random", "magnitude")
METHODS = ("attribution", *BASELINES)
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def kept_by_attribution(direction: Floats, effects: Floats, ratio: float) -> Mask:
    """Keep a dimension where its share of the effects' length is at least `ratio` times the vector's."""
    given = np.abs(effects) / np.linalg.norm(effects)
    taken = np.abs(direction) / np.linalg.norm(direction)
    found: Mask = (given >= ratio * taken) & (direction != 0)
    return found


def kept_as_many(method: str, direction: Floats, effects: Floats, count: int, seed: int) -> Mask:
    """A baseline that keeps `count` dimensions: by |effect|, by |value|, or at random."""
    order = {
        "effect": np.argsort(-np.abs(effects), kind="stable"),
        "magnitude": np.argsort(-np.abs(direction), kind="stable"),
        "random": np.random.RandomState(seed).permutation(len(direction)),
    }[method]
    kept = np.zeros(len(direction), bool)
    kept[order[:count]] = True
    return kept


def sparse_vector(vector: SteeringVector, layer: int, kept: Mask, name: str, how: str) -> SteeringVector:
    """The vector's direction of one layer with the kept dimensions alone, as long as it was."""
    direction = vector.directions[layer]
    left = np.where(kept, direction, 0).astype(np.float32)
    scaled = scaled_to(left, length(direction), name, layer)
    what = f"{int(kept.sum())} of {len(kept)} dimensions of {mention(vector)}, {how}, rescaled"
    norms = {at: norm for at, norm in vector.stream_norms.items() if at == layer}
    origin = replace(vector.origin, derived=(*vector.origin.derived, what))
    return SteeringVector(name, {layer: scaled}, norms, origin)
