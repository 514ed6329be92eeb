"""pca: the mean difference along the first principal component of the pairs' differences."""

from __future__ import annotations

import numpy as np

from vsteer.vectors.activations import Activations, Bools, Float64
from vsteer.vectors.methods.eigenvectors import largest_eigenvectors
from vsteer.vectors.methods.mean_difference import mean_difference


def principal_difference(activations: Activations, positive: Bools, layer: int) -> Float64:
    """The mean difference gives the component its sign and its length.

    The differences are not centred, since their mean is what is looked for.
    """

    def pair_differences_along(direction: Float64) -> Float64:
        projected = activations.projected(layer, direction[None])[:, 0]
        difference: Float64 = projected[0::2] - projected[1::2]
        return difference

    def sum_of_pair_differences(weight_of_pair: Float64) -> Float64:
        weights = np.repeat(weight_of_pair, 2)
        weights[1::2] *= -1
        found: Float64 = activations.weighted(layer, weights[None])[0]
        return found

    component = largest_eigenvectors(
        lambda v: sum_of_pair_differences(pair_differences_along(v)), activations.shape[2], 1
    )[0]
    along: Float64 = component * (mean_difference(activations, positive, layer) @ component)
    return along
