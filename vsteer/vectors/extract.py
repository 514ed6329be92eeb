"""Contrast data through an engine: every layer's activations in one pass, then directions made of them.

The engine is the vLLM driver, or the reference that it is held against. A text that cannot be run ends the
extraction: a vector made from fewer pairs than it says would be another vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vsteer.datasets.items import ItemSet, UnpairedSets
from vsteer.errors import DataError, SteeringFault
from vsteer.protocol import Direction, Engine, Request
from vsteer.vectors.activations import Activations, Float64
from vsteer.vectors.members import Member, Token, member_count, members
from vsteer.vectors.methods import METHODS, MethodName
from vsteer.vectors.methods.mean_difference import contrast
from vsteer.vectors.vector import Origin, SteeringVector


@dataclass(frozen=True)
class Label:
    """What is known of a member besides its activations."""

    item_id: str
    positive: bool
    letter: str


class Extraction:
    """The activations of one data set, and the vectors made of them. They are on disk: close it."""

    def __init__(self, activations: Activations, labels: Sequence[Label], paired: bool) -> None:
        self.activations = activations
        self.labels = labels
        self.paired = paired
        self.positive = np.array([label.positive for label in labels])
        self.layers = activations.shape[0]

    def __enter__(self) -> Extraction:
        return self

    def __exit__(self, *_: object) -> None:
        self.activations.close()

    @property
    def contrast(self) -> Float64:
        """The weight of each member in the difference of the classes' means."""
        return contrast(self.positive)

    @property
    def pairs(self) -> int:
        """How many pairs there are; for unpaired sets, the size of the smaller one."""
        return int(min(self.positive.sum(), (~self.positive).sum()))

    def vector(self, name: str, method: MethodName, origin: Origin = Origin()) -> SteeringVector:  # noqa: B008
        """The vector by a method that suits the data, as it comes: norm raw."""
        direction = METHODS[method].direction
        if direction is None:
            raise SteeringFault(f"{method} makes no vector of the stream")
        directions = {
            layer: direction(self.activations, self.positive, layer).astype(np.float32)
            for layer in range(self.layers)
        }
        deviations = {layer: self.deviation(layer, one) for layer, one in directions.items()}
        return SteeringVector(name, directions, self.stream_norms, origin, deviations)

    def deviation(self, layer: int, direction: Direction) -> float:
        """The standard deviation of all members' streams along the direction; 0 where there is none."""
        length = float(np.linalg.norm(direction.astype(np.float64)))
        if not length:
            return 0.0
        along = self.activations.projected(layer, direction.astype(np.float64)[None] / length)
        return float(along.std())

    def shuffled(self, count: int, seed: int) -> list[dict[int, Float64]]:
        """The difference of means with labels at random, `count` times: what chance alone gives.

        In a pair the two members change places or don't, so that the letters and the topics stay as they are.
        """
        rng = np.random.default_rng(seed)
        if self.paired:
            signs = np.repeat(rng.choice([-1.0, 1.0], (count, self.pairs)), 2, axis=1)
            weights = signs * self.contrast
        else:
            weights = np.stack([rng.permutation(self.contrast) for _ in range(count)])
        by_layer = [self.activations.weighted(layer, weights) for layer in range(self.layers)]
        return [{layer: found[index] for layer, found in enumerate(by_layer)} for index in range(count)]

    @cached_property
    def stream_norms(self) -> dict[int, float]:
        """The stream's mean length at the extracted tokens, by layer."""
        return {layer: float(self.activations.norms(layer).mean()) for layer in range(self.layers)}


def extract(
    engine: Engine,
    tokenizer: Any,
    data: ItemSet | UnpairedSets,
    token: Token,
    system: str | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Extraction:
    """Run every member through `engine` and keep the stream of all layers at its token."""
    labels: list[Label] = []
    activations = Activations(engine.info.layers, member_count(data), engine.info.hidden_size)
    try:
        requests = _requests(members(tokenizer, data, token, system), labels)
        for result in engine.run(requests):
            if result.status != "ok":
                label = labels[int(result.id)]
                raise DataError(
                    f"item {label.item_id} of the data cannot be run: {result.error}",
                    "take it out of the data, or give a larger max_model_len",
                )
            if result.captured is None:
                raise SteeringFault(f"nothing was captured of member {result.id}")
            activations.put(int(result.id), result.captured[0])
            on_progress()
    except BaseException:
        activations.close()
        raise
    return Extraction(activations, labels, isinstance(data, ItemSet))


def _requests(found: Iterator[Member], labels: list[Label]) -> Iterator[Request]:
    """One request for each member, named by its place; a pair's two are neighbours and share their prefix."""
    for index, member in enumerate(found):
        labels.append(Label(member.item_id, member.positive, member.letter))
        yield Request(str(index), member.prompt, capture=(member.position,))
