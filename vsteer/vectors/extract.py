"""Contrast data through an engine: every layer's activations in one pass, then vectors made of them.

    with extract(engine, data, token="answer", progress=advance) as extraction:
        vector = extraction.vector("refusal", "mean_diff")

The engine is the vLLM driver, or the reference that it is held against. A text that cannot be run ends the
extraction: a vector made from fewer pairs than it says would be another vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vsteer.datasets.items import ItemSet, UnpairedSets
from vsteer.errors import DataError, SteeringFault, UsageError
from vsteer.protocol import Engine, Request
from vsteer.vectors.activations import Activations, Float64
from vsteer.vectors.members import Member, Token, members
from vsteer.vectors.methods.principal import principal
from vsteer.vectors.vector import Origin, SteeringVector

PAIRED_METHODS = ("mean_diff", "pca")
UNPAIRED_METHODS = ("dim",)


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
        positive = self.positive
        return np.where(positive, 1 / positive.sum(), -1 / (~positive).sum())

    @property
    def pairs(self) -> int:
        """How many pairs; of unpaired sets the size of the smaller one."""
        return int(min(self.positive.sum(), (~self.positive).sum()))

    def vector(self, name: str, method: str, origin: Origin = Origin()) -> SteeringVector:  # noqa: B008
        """The vector by `mean_diff` or `pca` (pairs) or `dim` (unpaired sets), as it comes: norm raw."""
        check_method(method, self.paired)
        of_layer = self._principal_difference if method == "pca" else self.mean_difference
        directions = {layer: of_layer(layer).astype(np.float32) for layer in range(self.layers)}
        return SteeringVector(name, directions, self.stream_norms(), origin)

    def shuffled(self, count: int, seed: int) -> list[dict[int, Float64]]:
        """The same difference of means with labels at random, `count` times: what chance alone gives.

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

    def stream_norms(self) -> dict[int, float]:
        """The stream's mean length at the extracted tokens, by layer."""
        return {layer: float(self.activations.norms(layer).mean()) for layer in range(self.layers)}

    def mean_difference(self, layer: int) -> Float64:
        found: Float64 = self.activations.weighted(layer, self.contrast[None])[0]
        return found

    def _principal_difference(self, layer: int) -> Float64:
        """The mean difference along the pair differences' first component, which fixes sign and length.

        The differences are not centred: their mean is what is looked for.
        """

        def on(direction: Float64) -> Float64:
            projected = self.activations.projected(layer, direction[None])[:, 0]
            difference: Float64 = projected[0::2] - projected[1::2]
            return difference

        def back(of_pair: Float64) -> Float64:
            weights = np.repeat(of_pair, 2)
            weights[1::2] *= -1
            found: Float64 = self.activations.weighted(layer, weights[None])[0]
            return found

        component = principal(lambda v: back(on(v)), self.activations.shape[2], 1)[0]
        along: Float64 = component * (self.mean_difference(layer) @ component)
        return along


def extract(
    engine: Engine,
    tokenizer: Any,
    data: ItemSet | UnpairedSets,
    token: Token,
    system: str | None = None,
    progress: Callable[[], None] = lambda: None,
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
            progress()
    except BaseException:
        activations.close()
        raise
    return Extraction(activations, labels, isinstance(data, ItemSet))


def member_count(data: ItemSet | UnpairedSets) -> int:
    if isinstance(data, ItemSet):
        return 2 * len(data.items)
    return len(data.positive.prompts) + len(data.negative.prompts)


def check_method(method: str, paired: bool) -> None:
    allowed = PAIRED_METHODS if paired else UNPAIRED_METHODS
    if method not in PAIRED_METHODS + UNPAIRED_METHODS:
        known = ", ".join(PAIRED_METHODS + UNPAIRED_METHODS)
        raise UsageError(f"unknown method {method!r}", f"known: {known}")
    if method not in allowed:
        kind = "contrast pairs" if paired else "two unpaired sets"
        raise UsageError(f"the method {method} does not work on {kind}", f"for these: {', '.join(allowed)}")


def _requests(found: Iterator[Member], labels: list[Label]) -> Iterator[Request]:
    """One request a member, named by its place; both of a pair together, so that they share their prefix."""
    for index, member in enumerate(found):
        labels.append(Label(member.item_id, member.positive, member.letter))
        yield Request(str(index), member.prompt, capture=(member.position,))
