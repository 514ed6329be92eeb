"""The passes behind the injection: recorded, with gradients, with one edge patched, and within a circuit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vsteer.mechanism.graph import Graph
from vsteer.mechanism.model import Actor, Model, Norm, Rails


class Record(Actor):
    """Keeps what every writer wrote and what every reader read, of a pass with one row."""

    def __init__(self) -> None:
        self.streams: dict[int, Tensor] = {}  # in front of each layer's attention, and of the final norm
        self.middles: dict[int, Tensor] = {}  # in front of each layer's MLP
        self.written: dict[int, Tensor] = {}  # by the heads, not yet widened to the stream
        self.mlps: dict[int, Tensor] = {}

    def read(self, layer: int, reader: str, stream: Tensor, norm: Norm) -> Tensor:
        (self.middles if reader == "mlp" else self.streams)[layer] = stream
        return norm(stream)

    def heads(self, layer: int, heads: Tensor) -> Tensor:
        self.written[layer] = heads
        return heads

    def mlp(self, layer: int, output: Tensor) -> Tensor:
        self.mlps[layer] = output
        return output

    def stream(self, reader: str, layer: int) -> Tensor:
        return self.middles[layer] if reader == "mlp" else self.streams[layer]


@dataclass(frozen=True)
class Steered:
    """One text behind the injection: its unsteered stream there, and what is added to it."""

    model: Model
    graph: Graph
    rails: Rails
    stream: Tensor  # [1, position, width]
    added: Tensor  # [position, width]

    def run(self, actor: Actor, scale: Tensor | float = 1.0) -> Tensor:
        """The final norm's output, where `scale` times the steering is added."""
        return self.go(self.stream + scale * self.added, actor)

    def go(self, stream: Tensor, actor: Actor, first: int | None = None) -> Tensor:
        first = self.graph.first if first is None else first
        return self.model.read_out(self.model.run(stream, self.rails, actor, first), actor)


def differences(steered: Steered, to: Record, base: Record, layer: int | None) -> Tensor:
    """How far what a layer's writers wrote differs between two passes: heads, then MLP, [writer, ..].

    Without a layer it is the injection's.
    """
    if layer is None:
        first = steered.graph.first
        return to.streams[first] - base.streams[first]
    heads = steered.model.blocks[layer].write_apart(to.written[layer] - base.written[layer])[0]
    return torch.cat([heads, to.mlps[layer] - base.mlps[layer]])


# A metric of the final norm's output, for each row: [row, position, width] -> [row].
Metric = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Gradients:
    """A metric's mean gradients along the scale of the steering."""

    readers: Tensor  # [reader, position, width], at each reader's stream or behind its norm
    injected: Tensor  # [position, width]: at the injection


class _Leaves(Actor):
    """Gives each reader a tensor of its own, whose gradient is the metric's through that reader alone."""

    def __init__(self, behind_norms: bool) -> None:
        self.behind_norms = behind_norms
        self.read_in: list[Tensor] = []

    def read(self, layer: int, reader: str, stream: Tensor, norm: Norm) -> Tensor:
        own = stream + 0
        normed = norm(own)
        self.read_in.append(normed if self.behind_norms else own)
        return normed


def mean_gradients(
    steered: Steered, metric: Metric, steps: int, at_once: int = 1, behind_norms: bool = False
) -> Gradients:
    """Integrated gradients: the mean over the midpoints of `steps` equal parts of the scale from 0 to 1."""
    scales = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    total: list[Tensor] = []
    for start in range(0, steps, at_once):
        scale = scales[start : start + at_once].to(steered.stream)[:, None, None]
        injected = (steered.stream + scale * steered.added).requires_grad_()
        leaves = _Leaves(behind_norms)
        found = metric(steered.go(injected, leaves)).sum()
        # What no listed position depends on, such as a last layer's query elsewhere, has gradient 0.
        parts = torch.autograd.grad(found, [injected, *leaves.read_in])
        sums = [part.sum(0) for part in parts]
        total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
    injected_mean, *readers = (each / steps for each in total)
    return Gradients(torch.stack(readers), injected_mean)


def edge_scores(steered: Steered, gradients: Gradients, to: Record, base: Record) -> Tensor:
    """Each edge's attributed effect, summed over positions: [writer, reader], 0 where there is no edge."""
    graph = steered.graph
    scores = torch.zeros(len(graph.writers), len(graph.readers), dtype=torch.float64)
    readers = gradients.readers.double()
    for layer in (None, *range(graph.first, graph.layers)):
        change = differences(steered, to, base, layer).double()
        start = 0 if layer is None else graph.heads_of(layer).start
        scores[start : start + len(change)] = torch.einsum("wtd,rtd->wr", change, readers).cpu()
    return scores * torch.from_numpy(graph.edges)


class _OneReader(Actor):
    """In each row, something else is added to what one reader reads."""

    def __init__(self, kind: str, layer: int, changes: Tensor) -> None:
        self.kind, self.layer, self.changes = kind, layer, changes

    def read(self, layer: int, reader: str, stream: Tensor, norm: Norm) -> Tensor:
        return norm(stream + self.changes if (reader, layer) == (self.kind, self.layer) else stream)


def patched(
    steered: Steered, base: Record, other: Record, metric: Metric, reader: int, writers: Sequence[int]
) -> Tensor:
    """The metric of the pass `base` where an edge carries the value that it has in the pass `other`.

    One value for each edge: from each of the writers to the reader.
    """
    graph, place = steered.graph, steered.graph.readers[reader]
    changes = []
    for writer in writers:
        of = graph.writers[writer]
        layer = None if of.kind == "injected" else of.layer
        start = 0 if layer is None else graph.heads_of(layer).start
        changes.append(differences(steered, other, base, layer)[writer - start])
    actor = _OneReader(place.kind, place.layer, torch.stack(changes))
    # what lies before the reader is the pass `base` itself
    stream = base.streams[place.layer].expand(len(writers), -1, -1)
    return metric(steered.go(stream, actor, first=place.layer))


class InCircuit(Actor):
    """A steered pass in which every edge outside of the circuit carries what it carries unsteered.

    It keeps every writer's change, so its memory is that of the stream times the number of writers.
    """

    def __init__(self, steered: Steered, circuit: Tensor, unsteered: Record) -> None:
        self.steered, self.unsteered = steered, unsteered
        self.circuit = circuit.to(steered.stream.device)  # [writer, reader]
        self.changes = steered.added.new_zeros(len(steered.graph.writers), *steered.added.shape)
        self.changes[0] = steered.added

    def read(self, layer: int, reader: str, stream: Tensor, norm: Norm) -> Tensor:
        graph = self.steered.graph
        before = graph.writers_before(reader, layer)
        place = graph.reader(reader, layer)
        kept = self.circuit[:before, place]
        return norm(self.unsteered.stream(reader, layer) + self.changes[:before][kept].sum(0))

    def heads(self, layer: int, heads: Tensor) -> Tensor:
        change = self.steered.model.blocks[layer].write_apart(heads - self.unsteered.written[layer])
        self.changes[self.steered.graph.heads_of(layer)] = change[0]
        return heads

    def mlp(self, layer: int, output: Tensor) -> Tensor:
        self.changes[self.steered.graph.mlp_of(layer)] = (output - self.unsteered.mlps[layer])[0]
        return output
