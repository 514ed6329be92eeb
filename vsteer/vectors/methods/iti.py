"""iti: inference-time intervention (Li et al. 2023), at the heads whose outputs tell the classes apart best.

For each attention head a logistic probe is learned from most of the pairs and tried on the others. Each of
the best heads has a direction: the difference of its outputs' means, as long as their standard deviation
along it. What the layer's attention makes of these directions is added to the stream behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vsteer.vectors.activations import Activations, Bools, Float64
from vsteer.vectors.training.texts import held_out

# Of the paper: of 1,024 heads in a model of 7B.
HEADS = 48
# Which pairs the probes are tried on.
_HELD_OUT, _SEED = 0.2, 0


@dataclass(frozen=True)
class Head:
    """One head: how well its probe does, and how far its outputs spread along their mean difference."""

    layer: int
    head: int
    held_out_accuracy: float  # of the members of the pairs that the probe was not learned from
    held_out_loss: float  # their mean cross-entropy
    learned_accuracy: float  # of the others
    deviation: float  # standard deviation of all members along the direction
    separation: float  # how far the classes' means lie apart, in standard deviations
    chosen: bool = False


def probed_heads(outputs: Activations, positive: Bools, heads: int) -> list[Head]:
    """Every head of every layer. `outputs` holds [layer, member, heads x width]; members come in pairs."""
    learned, aside = held_out(len(positive) // 2, _HELD_OUT, _SEED)
    of_pair = np.arange(len(positive)) // 2
    learn, test = np.isin(of_pair, learned), np.isin(of_pair, aside)
    found = []
    for layer in range(outputs.shape[0]):
        values = np.concatenate([part for _, part in outputs.chunks(layer)])
        for head, of_head in enumerate(np.split(values, heads, axis=1)):
            # a head's unit must not decide how much its probe's penalty weighs
            centre = of_head[learn].mean(axis=0)
            spread = np.sqrt(np.square(of_head[learn] - centre).mean()) or 1.0
            scaled = (of_head - centre) / spread
            weights, bias = fit_probe(scaled[learn], positive[learn])
            scores = scaled @ weights + bias
            right = (scores > 0) == positive
            losses = np.logaddexp(0, np.where(positive, -scores, scores))
            direction, gap = unit_difference(of_head, positive)
            deviation = float((of_head @ direction).std())
            found.append(
                Head(
                    layer,
                    head,
                    float(right[test].mean()),
                    float(losses[test].mean()),
                    float(right[learn].mean()),
                    deviation,
                    gap / deviation if deviation else 0.0,
                )
            )
    return found


def best_heads(heads: Sequence[Head], count: int) -> list[tuple[int, int]]:
    """The layers and numbers of the `count` best on the held-out pairs; of equal ones that of less loss."""
    useful = [one for one in heads if one.deviation]
    ranked = sorted(useful, key=lambda one: (-one.held_out_accuracy, one.held_out_loss, one.layer, one.head))
    return sorted((one.layer, one.head) for one in ranked[:count])


def head_directions(
    outputs: Activations,
    positive: Bools,
    heads: int,
    chosen: Sequence[tuple[int, int]],
    projected: Callable[[int, Float64], Float64],
) -> dict[int, Float64]:
    """What the chosen heads' directions are in the stream: one sum for each layer that has such heads.

    `projected(layer, outputs)` is what the layer's attention adds for one token's heads' outputs.
    """
    directions = {}
    for layer in sorted({layer for layer, _ in chosen}):
        values = np.concatenate([part for _, part in outputs.chunks(layer)])
        along = np.zeros((heads, values.shape[1] // heads))
        for head in (head for of_layer, head in chosen if of_layer == layer):
            of_head = np.split(values, heads, axis=1)[head]
            direction, _ = unit_difference(of_head, positive)
            along[head] = direction * (of_head @ direction).std()
        directions[layer] = projected(layer, along.ravel())
    return directions


def unit_difference(values: Float64, positive: Bools) -> tuple[Float64, float]:
    """The direction of the classes' mean difference, and its length; zeros where the means are equal."""
    difference = values[positive].mean(axis=0) - values[~positive].mean(axis=0)
    length = float(np.linalg.norm(difference))
    return difference / (length or 1.0), length


def fit_probe(values: Float64, positive: Bools) -> tuple[Float64, float]:
    """Logistic regression: the weights and the bias that make loss + |weights|^2 / 2 least.

    The loss is summed over members. It is convex, so the answer is one, and always the same.
    """
    from scipy.optimize import minimize

    signs = np.where(positive, 1.0, -1.0)

    def loss(point: Float64) -> tuple[float, Float64]:
        weights, margin = point[:-1], signs * (values @ point[:-1] + point[-1])
        slope = -signs / (1 + np.exp(np.minimum(margin, 700)))
        gradient = np.append(slope @ values + weights, slope.sum())
        return float(np.logaddexp(0, -margin).sum() + weights @ weights / 2), gradient

    start = np.zeros(values.shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    return found[:-1], float(found[-1])
