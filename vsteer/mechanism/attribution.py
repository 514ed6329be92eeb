"""Which edges carry a steering's effect: attributed by integrated gradients, and by exact patching beside it.

All is worked out text by text, as sums over its listed positions, so that means over any texts can be had.
The control is a random vector of the same length: at the same positions, on the same pairs of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from vsteer.mechanism.graph import Graph
from vsteer.mechanism.model import Model
from vsteer.mechanism.passes import edge_scores, mean_gradients, patched
from vsteer.mechanism.texts import Case, Text, addition, case_of, rendered, steer
from vsteer.protocol import Positions

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """How a steering is looked at: the vector and its control, one layer's direction for each."""

    graph: Graph
    directions: Sequence[Tensor]  # the vector's, then the controls'
    multiplier: float
    positions: Positions
    system: str | None
    steps: int
    at_once: int
    behind_norms: bool  # whether gradients are taken behind the norm in front of a reader

    def case(self, model: Model, text: Text) -> Case:
        prompt = rendered(model.tokenizer, text, self.system)
        steered = steer(model, self.graph, prompt, self.directions[0], self.multiplier, self.positions)
        return case_of(text, prompt, steered)

    def added(self, case: Case, control: int) -> Tensor:
        prompt = rendered(case.steered.model.tokenizer, case.text, self.system)
        direction = self.directions[control]
        return addition(case.steered.stream, prompt, direction, self.multiplier, self.positions)


@dataclass(frozen=True)
class TextScores:
    """Sums over the listed positions of one text; the first index is the vector, then its controls."""

    positions: NDArray[np.int64]
    steered: NDArray[np.int64]  # the tokens
    unsteered: NDArray[np.int64]
    edges: Floats  # [vector, writer, reader]
    dimensions: Floats  # [vector, width]: what each dimension of the injection is given
    effects: Floats  # [vector]: the metric steered less unsteered, which the dimensions' sum approaches


def attribute(model: Model, question: Question, text: Text) -> TextScores:
    case = question.case(model, text)
    graph, listed = question.graph, case.listed
    edges, dimensions, effects = [], [], []
    for control in range(len(question.directions) if len(listed) else 0):
        steered, record = case.under(question.added(case, control))
        gradients = mean_gradients(
            steered, case.metric, question.steps, question.at_once, question.behind_norms
        )
        edges.append(edge_scores(steered, gradients, record, case.passes["unsteered"]).numpy())
        given = (gradients.injected.double() * steered.added.double()).sum(0)
        dimensions.append(given.cpu().numpy())
        effects.append(_metric(case, record.streams[graph.layers]) - _metric(case))
    shape = (len(graph.writers), len(graph.readers))
    return TextScores(
        positions=listed.positions.cpu().numpy(),
        steered=listed.steered.cpu().numpy(),
        unsteered=listed.unsteered.cpu().numpy(),
        edges=np.array(edges).reshape(-1, *shape),
        dimensions=np.array(dimensions).reshape(-1, model.width),
        effects=np.array(effects),
    )


def _metric(case: Case, stream: Tensor | None = None) -> float:
    """The case's metric of a final stream; without one, of the unsteered pass."""
    model = case.steered.model
    if stream is None:
        stream = case.passes["unsteered"].streams[model.layers]
    with torch.no_grad():
        return float(case.metric(model.final_norm(stream))[0])


def chosen_edges(graph: Graph, scores: Floats, count: int, seed: int) -> list[tuple[int, int]]:
    """Edges to be patched: half of them those with the largest |score|, the others at random of the rest."""
    order = graph.by_score(scores)
    largest, rest = order[: count // 2], order[count // 2 :]
    drawn = np.random.RandomState(seed).permutation(rest)[: count - len(largest)]
    readers = len(graph.readers)
    return [(int(place) // readers, int(place) % readers) for place in (*largest, *drawn)]


def exact_effects(model: Model, question: Question, text: Text, edges: Sequence[tuple[int, int]]) -> Floats:
    """Each edge's effect on the text, summed over its listed positions.

    In the pass of the model that wrote the text, the edge carries its value in the other pass. The sign is
    that of the scores: what the steered value gives.
    """
    case = question.case(model, text)
    found = np.zeros(len(edges))
    if not len(case.listed):
        return found
    other = "unsteered" if text.written == "steered" else "steered"
    base = case.passes[text.written]
    before = _metric(case, base.streams[model.layers])
    by_reader: dict[int, list[int]] = {}
    for place, (_, reader) in enumerate(edges):
        by_reader.setdefault(reader, []).append(place)
    for reader, places in by_reader.items():
        for start in range(0, len(places), question.at_once):
            part = places[start : start + question.at_once]
            writers = [edges[place][0] for place in part]
            with torch.no_grad():
                after = patched(case.steered, base, case.passes[other], case.metric, reader, writers)
            found[part] = after.double().cpu().numpy() - before
    return -found if text.written == "steered" else found


def rank_correlation(scores: Sequence[float], effects: Sequence[float]) -> float:
    return float(spearmanr(scores, effects).statistic)
