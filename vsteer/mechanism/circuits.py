"""Circuits: how much of a steering's effect a few edges carry, beside as many edges drawn at random.

In a steered pass every edge outside of the circuit carries its unsteered value. Four measures compare it with
the steered and the unsteered pass at the listed positions; each is 1 for the steered pass itself, and all but
the first are 0 for the unsteered one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsteer.mechanism.graph import Graph, Mask
from vsteer.mechanism.model import Model
from vsteer.mechanism.passes import InCircuit
from vsteer.mechanism.texts import AT_ONCE, Case


@dataclass(frozen=True)
class Sums:
    """What the measures are made of, summed over listed positions."""

    positions: float
    same: float  # positions where the most likely token is the steered pass's
    steered_to_circuit: float  # divergences, from the first named
    steered_to_unsteered: float
    circuit_to_steered: float
    unsteered_to_steered: float
    circuit: float  # log-probabilities of the steered pass's token
    steered: float
    unsteered: float

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def measures(self) -> dict[str, float]:
        """same_token, kl_from_steered, kl_to_steered, logprob."""

        def share(part: float, whole: float) -> float:
            return part / whole if whole else float("nan")

        return {
            "same_token": share(self.same, self.positions),
            "kl_from_steered": 1 - share(self.steered_to_circuit, self.steered_to_unsteered),
            "kl_to_steered": 1 - share(self.circuit_to_steered, self.unsteered_to_steered),
            "logprob": share(self.circuit - self.unsteered, self.steered - self.unsteered),
        }


def in_circuit(case: Case, circuit: Mask) -> Tensor:
    """The final norm's output at the listed positions, in a steered pass through the circuit alone."""
    actor = InCircuit(case.steered, torch.from_numpy(circuit), case.passes["unsteered"])
    with torch.no_grad():
        return case.steered.run(actor)[0, case.listed.positions]


def compared(case: Case, circuit: Mask) -> Sums:
    model: Model = case.steered.model
    total = Sums(*[0.0] * 9)
    runs = {**case.normed, "circuit": in_circuit(case, circuit)}
    for start in range(0, len(case.listed), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        tokens = case.listed.steered[part]
        with torch.no_grad():
            logp = {name: model.logits(run[part]).double().log_softmax(-1) for name, run in runs.items()}
        of_token = {name: float(one.gather(-1, tokens[:, None]).sum()) for name, one in logp.items()}
        total += Sums(
            positions=len(tokens),
            same=float((logp["circuit"].argmax(-1) == tokens).sum()),
            steered_to_circuit=_divergence(logp["steered"], logp["circuit"]),
            steered_to_unsteered=_divergence(logp["steered"], logp["unsteered"]),
            circuit_to_steered=_divergence(logp["circuit"], logp["steered"]),
            unsteered_to_steered=_divergence(logp["unsteered"], logp["steered"]),
            **of_token,
        )
    return total


def _divergence(p: Tensor, q: Tensor) -> float:
    return float((p.exp() * (p - q)).sum())


def circuits(graph: Graph, scores: NDArray[np.float64], sizes: Sequence[int]) -> dict[int, Mask]:
    """The circuit of each size, of the edges with the largest |score|."""
    order = graph.by_score(scores)
    return {size: graph.circuit(order, size) for size in sizes}


def random_circuits(graph: Graph, sizes: Mapping[int, int], seed: int) -> dict[int, Mask]:
    """By the same names circuits of edges drawn at random, each of so many edges."""
    order = graph.at_random(seed)
    return {name: graph.circuit(order, size) for name, size in sizes.items()}


def overlap(one: Mask, other: Mask) -> float:
    """The share of the smaller circuit's edges that the other has too."""
    smaller = min(one.sum(), other.sum())
    return float((one & other).sum() / smaller) if smaller else float("nan")
