"""mean_diff and dim: the difference of the classes' means, of pairs or of two unpaired sets."""

from __future__ import annotations

import numpy as np

from vsteer.vectors.activations import Activations, Bools, Float64


def mean_difference(activations: Activations, positive: Bools, layer: int) -> Float64:
    found: Float64 = activations.weighted(layer, contrast(positive)[None])[0]
    return found


def contrast(positive: Bools) -> Float64:
    """The weight of each member in the difference of the classes' means."""
    return np.where(positive, 1 / positive.sum(), -1 / (~positive).sum())
