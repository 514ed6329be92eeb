"""The graph through which a steering acts: who writes to the stream behind the injection, and who reads it.

Writers are the injected vector, each attention head and each MLP; readers are each layer's queries, keys,
values and MLP, and the unembedding. There is an edge from every writer to every reader that comes later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

READERS = ("query", "key", "value", "mlp")
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Writer:
    kind: str  # injected, head or mlp
    layer: int
    head: int = -1  # -1 where it is none


@dataclass(frozen=True)
class Reader:
    kind: str  # query, key, value, mlp or unembedding
    layer: int


@dataclass(frozen=True)
class Graph:
    """Of a model with `layers` blocks of `heads` heads, steered behind block `injected`."""

    injected: int
    layers: int
    heads: int

    @property
    def first(self) -> int:
        """The first block that the steering goes through."""
        return self.injected + 1

    @cached_property
    def writers(self) -> tuple[Writer, ...]:
        found = [Writer("injected", self.injected)]
        for layer in range(self.first, self.layers):
            found += [*(Writer("head", layer, head) for head in range(self.heads)), Writer("mlp", layer)]
        return tuple(found)

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        found = [Reader(kind, layer) for layer in range(self.first, self.layers) for kind in READERS]
        return (*found, Reader("unembedding", self.layers))

    def reader(self, kind: str, layer: int) -> int:
        """A reader's place among the readers."""
        at = READERS.index(kind) if kind in READERS else 0
        return (layer - self.first) * len(READERS) + at

    def heads_of(self, layer: int) -> slice:
        """The places of a layer's heads among the writers; its MLP comes behind them."""
        start = 1 + (layer - self.first) * (self.heads + 1)
        return slice(start, start + self.heads)

    def mlp_of(self, layer: int) -> int:
        return int(self.heads_of(layer).stop)

    def writers_before(self, kind: str, layer: int) -> int:
        """How many writers, from the first on, have written when a reader reads."""
        start = self.heads_of(layer).start
        return int(start + self.heads if kind == "mlp" else start)

    @cached_property
    def edges(self) -> Mask:
        """Which pairs are edges: [writer, reader]."""
        found = np.zeros((len(self.writers), len(self.readers)), bool)
        for place, reader in enumerate(self.readers):
            found[: self.writers_before(reader.kind, reader.layer), place] = True
        return found

    def on_whole_paths(self, edges: Mask) -> Mask:
        """Those of some edges that lie on a path from the injection to the unembedding."""
        reached = np.zeros(len(self.writers), bool)
        reached[0] = True
        leads = np.zeros(len(self.readers), bool)
        leads[-1] = True
        layers = range(self.first, self.layers)
        for layer in layers:
            attention = slice(self.reader("query", layer), self.reader("mlp", layer))
            reached[self.heads_of(layer)] = (edges[:, attention] & reached[:, None]).any()
            reached[self.mlp_of(layer)] = (edges[:, self.reader("mlp", layer)] & reached).any()
        for layer in reversed(layers):
            leads[self.reader("mlp", layer)] = (edges[self.mlp_of(layer)] & leads).any()
            attention = slice(self.reader("query", layer), self.reader("mlp", layer))
            leads[attention] = (edges[self.heads_of(layer)] & leads).any()
        found: Mask = edges & reached[:, None] & leads
        return found

    def circuit(self, order: Iterable[int], size: int) -> Mask:
        """The fewest edges, taken in an order of their flat places, of which `size` lie on whole paths."""
        places = np.fromiter(order, int)

        def first(count: int) -> Mask:
            taken = np.zeros(self.edges.size, bool)
            taken[places[:count]] = True
            return self.on_whole_paths(taken.reshape(self.edges.shape))

        low, high = 0, len(places)
        while low < high:
            middle = (low + high) // 2
            if first(middle).sum() >= size:
                high = middle
            else:
                low = middle + 1
        return first(low)

    def by_score(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        """The edges' flat places, the largest |score| first."""
        places = np.flatnonzero(self.edges)
        return places[np.argsort(-np.abs(scores.reshape(-1)[places]), kind="stable")]

    def at_random(self, seed: int) -> NDArray[np.int64]:
        return np.random.RandomState(seed).permutation(np.flatnonzero(self.edges))
