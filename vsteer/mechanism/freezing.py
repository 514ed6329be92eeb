"""What a steered model does where a part of it is the unsteered model's, or doesn't see the vector.

Every steered pass has an unsteered pass over the same tokens beside it, in another row. From the injection
on, its attention weights, its values, or its MLPs' outputs take the place of the steered pass's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vsteer.mechanism.graph import Graph
from vsteer.mechanism.model import Actor, Model, Norm, Past, wide

# What each condition takes from the unsteered pass, or whose inputs it takes the vector out of.
FROZEN = {
    "steered": (),
    "weights": ("weights",),
    "values": ("values",),
    "mlps": ("mlps",),
    "all": ("weights", "values", "mlps"),
}
ABLATED = {"without_in_values": "value", "without_in_mlps": "mlp"}
CONDITIONS = (*FROZEN, *ABLATED)


@dataclass(frozen=True)
class Row:
    """One steered pass of a batch: what is added to its stream, and what is done to it."""

    direction: Tensor  # of the vector
    multiplier: float
    condition: str


class Frozen(Actor):
    """Row 2i is an unsteered pass, and row 2i + 1 the steered pass of `rows[i]` over the same tokens."""

    def __init__(self, rows: Sequence[Row], device: torch.device | str) -> None:
        def those(part: str) -> Tensor:
            places = [
                2 * place + 1 for place, row in enumerate(rows) if part in FROZEN.get(row.condition, ())
            ]
            return torch.tensor(places, dtype=torch.long, device=device)

        self.frozen = {part: those(part) for part in ("weights", "values", "mlps")}
        self.ablated = {
            reader: [
                (2 * place + 1, row.direction)
                for place, row in enumerate(rows)
                if ABLATED.get(row.condition) == reader
            ]
            for reader in ABLATED.values()
        }

    def read(self, layer: int, reader: str, stream: Tensor, norm: Norm) -> Tensor:
        if found := self.ablated.get(reader):
            stream = stream.clone()
            for row, direction in found:
                unit = wide(direction) / wide(direction).norm()
                seen = wide(stream[row])
                stream[row] = (seen - (seen @ unit)[:, None] * unit).to(stream.dtype)
        return norm(stream)

    def weights(self, layer: int, weights: Tensor) -> Tensor:
        return self._twins("weights", weights)

    def values(self, layer: int, values: Tensor) -> Tensor:
        return self._twins("values", values)

    def mlp(self, layer: int, output: Tensor) -> Tensor:
        return self._twins("mlps", output)

    def _twins(self, part: str, found: Tensor) -> Tensor:
        rows = self.frozen[part]
        return found.index_copy(0, rows, found[rows - 1]) if len(rows) else found


class FrozenPasses:
    """The passes of all rows over one prompt, and over what each row then writes."""

    def __init__(self, model: Model, graph: Graph, rows: Sequence[Row]) -> None:
        self.model, self.graph, self.rows = model, graph, rows
        self.actor = Frozen(rows, model.whole.device)

    @torch.no_grad()
    def normed(self, token_ids: Sequence[int], span: tuple[int, int]) -> Tensor:
        """The final norm's output of all rows, two for each of `rows`: [row, position, width]."""
        stream, rails = self.model.embed([token_ids])
        stream = self.model.run(stream, rails, Actor(), end=self.graph.first)
        stream = self._added(stream.expand(2 * len(self.rows), -1, -1), span, 0)
        stream = self.model.run(stream, rails, self.actor, first=self.graph.first)
        return self.model.read_out(stream, self.actor)

    @torch.no_grad()
    def write(
        self, prompt: Sequence[int], span: tuple[int, int], tokens: int, ends: frozenset[int]
    ) -> list[list[int]]:
        """What each of the rows writes, greedily, without the token that ends it."""
        count = len(self.rows)
        # masks and angles of the longest text; what stands in the places to be written changes none of them
        _, rails = self.model.embed([[*prompt, *[prompt[-1]] * tokens]])
        past: Past = {}
        written: list[list[int]] = [[] for _ in self.rows]
        done = [False] * count
        ids, seen = [list(prompt)] * count, 0
        for _ in range(tokens):
            stream = self.model.embed(ids)[0].repeat_interleave(2, 0)
            stream = self.model.run(stream, rails, Actor(), end=self.graph.first, past=past)
            stream = self._added(stream, span, seen)
            stream = self.model.run(stream, rails, self.actor, first=self.graph.first, past=past)
            seen += len(ids[0])
            best = self.model.logits(self.model.read_out(stream, self.actor)[1::2, -1]).argmax(-1).tolist()
            for place, token in enumerate(best):
                done[place] |= token in ends
                if not done[place]:
                    written[place].append(token)
            if all(done):
                break
            ids = [[token] for token in best]
        return written

    def _added(self, stream: Tensor, span: tuple[int, int], seen: int) -> Tensor:
        """The stream of the positions from `seen` on, with each steered row's addition."""
        start, end = span
        stream = stream.clone()
        inside = slice(max(start - seen, 0), max(end - seen, 0))
        for place, row in enumerate(self.rows):
            part = stream[2 * place + 1, inside]
            stream[2 * place + 1, inside] = (wide(part) + row.multiplier * wide(row.direction)).to(part.dtype)
        return stream
