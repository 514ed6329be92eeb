"""`vsteer bench mechanism`: what a token costs in memory and time, from which a larger model is planned.

Memory is what the process's peak rises by. Time is in seconds of processors, held against matrix products of
the same machine that are measured in turn, which makes it a number of operations.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from vsteer.bench.figures import Figure, rates_in_turn
from vsteer.bench.memory import held, most_held
from vsteer.errors import UnsupportedError
from vsteer.mechanism.graph import Graph
from vsteer.mechanism.model import Actor, Model
from vsteer.mechanism.passes import InCircuit, Record, Steered, mean_gradients, patched
from vsteer.mechanism.texts import Listed

TOKENS, QUICK_TOKENS = (64, 128, 256), (32, 64)
ROUNDS = 3
SIDE = 1024  # of the matrices whose product is the yardstick
MIB = 2**20
# Linux begins a new peak when 5 is written to it.
CLEAR = Path("/proc/self/clear_refs")


def bench_mechanism(
    model: Model, layer: int, quick: bool, on_progress: Callable[[str], None]
) -> list[Figure]:
    """Each part of an analysis of one text, injected behind the layer, at some lengths of the text."""
    if not CLEAR.exists():
        raise UnsupportedError("peaks of memory are read from Linux's /proc, which isn't here", "use Linux")
    graph = Graph(layer, model.layers, model.heads)
    above = model.inner.layers[graph.first :]
    parameters = sum(each.numel() for block in above for each in block.parameters())
    figures = []
    for tokens in QUICK_TOKENS if quick else TOKENS:
        on_progress(f"texts of {tokens} tokens")
        stream = tokens * len(above) * model.width * model.whole.dtype.itemsize
        for name, work in _parts(model, graph, tokens).items():
            size = _rise(work)
            seconds, rate = _seconds_and_rate(work)
            figures += [
                Figure(
                    f"{name}, {tokens} tokens: MiB",
                    size / MIB,
                    note=f"{size / stream:.1f} times the stream of the {len(above)} layers above",
                ),
                Figure(
                    f"{name}, {tokens} tokens: operations a token and parameter above",
                    seconds * rate / (parameters * tokens),
                    note=f"{seconds:.2f} s at {rate / 1e9:.0f} GFLOP/s",
                ),
            ]
    return figures


def _parts(model: Model, graph: Graph, tokens: int) -> dict[str, Callable[[], object]]:
    steered, listed = _text(model, graph, tokens)
    unsteered, other = Record(), Record()
    with torch.no_grad():
        steered.run(unsteered, 0.0)
        steered.run(other)
    metric = listed.metric(model)
    whole = torch.from_numpy(graph.edges)
    patching = partial(patched, steered, unsteered, other, metric, 0, [0])
    return {
        "a step's gradients": partial(mean_gradients, steered, metric, 1),
        # to the first reader, behind which all layers are computed
        "an edge patched": torch.no_grad()(patching),
        "a circuit": torch.no_grad()(lambda: steered.run(InCircuit(steered, whole, unsteered))),
    }


def _text(model: Model, graph: Graph, tokens: int) -> tuple[Steered, Listed]:
    """Random tokens, steered at all of them by a vector as long as the stream; every fourth one counts."""
    rng = torch.Generator().manual_seed(tokens)
    vocabulary = model.whole.config.vocab_size
    ids = torch.randint(0, vocabulary, (tokens,), generator=rng).tolist()
    with torch.no_grad():
        stream, rails = model.embed([ids])
        stream = model.run(stream, rails, Actor(), end=graph.first)
    direction = torch.randn(model.width, generator=rng).to(stream)
    added = (direction / direction.norm() * stream.norm(dim=-1).mean()).expand(tokens, -1)
    places = torch.arange(0, tokens, 4)
    predicted = torch.randint(0, vocabulary, (2, len(places)), generator=rng)
    return Steered(model, graph, rails, stream, added), Listed(places, *predicted)


def _rise(work: Callable[[], object]) -> int:
    """By how many bytes the process's peak of memory lies above what it had before, the second time.

    What a first time allocates for good, such as the libraries' own buffers, isn't the work's.
    """
    work()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = held()
    work()
    return most_held() - before


def _seconds_and_rate(work: Callable[[], object]) -> tuple[float, float]:
    """The work's seconds of processors, and the operations a second of matrix products between its rounds."""
    matrix = torch.randn(SIDE, SIDE)

    def of_work(_: int) -> float:
        return _spent(work)

    def of_product(_: int) -> float:
        return 2 * SIDE**3 / _spent(lambda: matrix @ matrix)

    spent, rates = rates_in_turn(ROUNDS, of_work, of_product)
    return statistics.median(spent), statistics.median(rates)


def _spent(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun
