"""What must hold exactly, each worked out by hand: freezing, circuits, gradients, scores, value vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.mechanism.tiny import (
    FAMILIES,
    INJECTED,
    PLAIN,
    RICH,
    TOKENS,
    direction,
    linearised,
    listed,
    model,
    record,
    steered,
)
from vsteer.mechanism.freezing import Frozen, Row
from vsteer.mechanism.graph import Graph
from vsteer.mechanism.model import Actor, Model, Norm
from vsteer.mechanism.passes import (
    InCircuit,
    Record,
    Steered,
    _OneReader,
    edge_scores,
    mean_gradients,
    patched,
)
from vsteer.mechanism.texts import Text, case_of, rendered, steer
from vsteer.mechanism.values import value_vectors


def close(one: Tensor, other: Tensor, tolerance: float = 1e-10) -> bool:
    return torch.allclose(one, other, rtol=0, atol=tolerance)


# --- freezing


class FrozenStreams(Frozen):
    """Notes the streams that are read."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.read_in: list[Tensor] = []

    def read(self, layer: int, reader: str, stream: Tensor, norm: Norm) -> Tensor:
        self.read_in.append(stream)
        return super().read(layer, reader, stream, norm)


def frozen(of: Steered, condition: str, multiplier: float) -> list[Tensor]:
    actor = FrozenStreams([Row(direction(of.model), multiplier, condition)], "cpu")
    rows = torch.cat([of.stream, of.stream + multiplier * of.added])
    with torch.no_grad():
        of.go(rows, actor)
    return actor.read_in


@pytest.mark.parametrize("name", FAMILIES)
def test_all_frozen_leaves_the_unsteered_stream_and_the_vector(name: str) -> None:
    of = steered(model(name))
    for stream in frozen(of, "all", 1.7):
        assert close(stream[1], stream[0] + 1.7 * of.added)


@pytest.mark.parametrize("name", [PLAIN, RICH])
@pytest.mark.parametrize("condition", ["weights", "values", "mlps", "all"])
def test_frozen_without_steering_changes_nothing(name: str, condition: str) -> None:
    for stream in frozen(steered(model(name)), condition, 0.0):
        assert close(stream[1], stream[0])


@pytest.mark.parametrize("name", [PLAIN, RICH])
@pytest.mark.parametrize("condition", ["values", "mlps"])
def test_frozen_is_what_hooks_on_transformers_do(name: str, condition: str) -> None:
    of = model(name, "float32")
    blocks = of.whole.model.layers
    modules = [
        block.self_attn.v_proj if condition == "values" else block.mlp for block in blocks[INJECTED + 1 :]
    ]
    kept: list[Tensor] = []
    ids = torch.tensor([TOKENS])
    push = torch.zeros(len(TOKENS), of.width)
    push[4:] = direction(of).float()

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        kept.append(output)

    handles = [module.register_forward_hook(keep) for module in modules]
    with torch.no_grad():
        of.whole(input_ids=ids)
    for handle in handles:
        handle.remove()
    handles = [
        module.register_forward_hook(lambda *_, value=value: value)
        for module, value in zip(modules, kept, strict=True)
    ]
    handles.append(blocks[INJECTED].register_forward_hook(lambda module, inputs, output: output + push))
    with torch.no_grad():
        theirs = of.whole(input_ids=ids).logits[0]
    for handle in handles:
        handle.remove()
    stream = frozen(steered(of), condition, 1.0)[-1]
    assert close(of.logits(of.final_norm(stream[1])), theirs, 1e-4)


@pytest.mark.parametrize(
    ("condition", "reader"), [("without_in_values", "value"), ("without_in_mlps", "mlp")]
)
def test_an_ablation_takes_the_vector_out_of_one_kind_of_input(condition: str, reader: str) -> None:
    of = steered(model(PLAIN))
    unit = direction(of.model) / direction(of.model).norm()
    seen: dict[str, list[Tensor]] = {}

    class Seen(Norm):
        def __init__(self, reader: str) -> None:
            self.reader = reader

        def __call__(self, x: Tensor) -> Tensor:
            seen.setdefault(self.reader, []).append(x)
            return x

    actor = Frozen([Row(direction(of.model), 1.0, condition)], "cpu")
    stream = torch.cat([of.stream, of.stream + of.added])
    for kind in ("query", "key", "value", "mlp"):
        actor.read(INJECTED + 1, kind, stream, Seen(kind))
    for kind, (found,) in seen.items():
        assert close(found[0], stream[0])
        wanted = stream[1] - torch.outer(stream[1] @ unit, unit) if kind == reader else stream[1]
        assert close(found[1], wanted)


# --- circuits


@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_circuit_is_the_steered_run_and_the_empty_one_the_unsteered(name: str) -> None:
    of = steered(model(name))
    base = record(of, 0.0)
    for edges, scale in ((of.graph.edges, 1.0), (np.zeros_like(of.graph.edges), 0.0)):
        with torch.no_grad():
            found = of.run(InCircuit(of, torch.from_numpy(edges), base))
            assert close(found, of.run(Actor(), scale))


@pytest.mark.parametrize("name", [PLAIN, RICH])
def test_all_edges_but_one_are_the_steered_run_with_that_one_patched(name: str) -> None:
    """Two ways of doing the same, which share no code."""
    of = steered(model(name))
    base, top = record(of, 0.0), record(of, 1.0)
    metric = listed().metric(of.model)
    edges = np.argwhere(of.graph.edges)
    for writer, reader in edges[:: len(edges) // 12].tolist():
        without = of.graph.edges.copy()
        without[writer, reader] = False
        with torch.no_grad():
            one = metric(of.run(InCircuit(of, torch.from_numpy(without), base)))
            other = patched(of, top, base, metric, reader, [writer])
        assert close(one, other)


# --- gradients and scores


@pytest.mark.parametrize("name", [PLAIN, RICH])
def test_gradients_are_finite_differences(name: str) -> None:
    of = steered(model(name))
    metric = listed().metric(of.model)
    found = mean_gradients(of, metric, steps=1)
    way = torch.randn(of.added.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    step = 1e-5
    half = of.stream + 0.5 * of.added
    for place, reader in enumerate(of.graph.readers):
        with torch.no_grad():
            up, down = (
                metric(of.go(half, _OneReader(reader.kind, reader.layer, sign * step * way[None])))
                for sign in (1, -1)
            )
        difference = float((up - down) / (2 * step))
        assert float((found.readers[place] * way).sum()) == pytest.approx(difference, rel=1e-6, abs=1e-8)
    with torch.no_grad():
        up, down = (metric(of.go(half + sign * step * way, Actor())) for sign in (1, -1))
    difference = float((up - down) / (2 * step))
    assert float((found.injected * way).sum()) == pytest.approx(difference, rel=1e-6)


def test_gradients_behind_norms_are_finite_differences_there() -> None:
    of = steered(model(PLAIN))
    metric = listed().metric(of.model)
    found = mean_gradients(of, metric, steps=1, behind_norms=True)
    way = torch.randn(of.added.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    class Behind(Actor):
        def __init__(self, kind: str, layer: int, change: Tensor) -> None:
            self.at, self.change = (layer, kind), change

        def read(self, layer: int, reader: str, stream: Tensor, norm: Norm) -> Tensor:
            return norm(stream) + self.change if (layer, reader) == self.at else norm(stream)

    for place, reader in enumerate(of.graph.readers):
        with torch.no_grad():
            up, down = (
                metric(
                    of.go(of.stream + 0.5 * of.added, Behind(reader.kind, reader.layer, sign * 1e-5 * way))
                )
                for sign in (1, -1)
            )
        difference = float((up - down) / 2e-5)
        assert float((found.readers[place] * way).sum()) == pytest.approx(difference, rel=1e-6, abs=1e-8)


def test_steps_at_once_change_nothing() -> None:
    of = steered(model(PLAIN))
    metric = listed().metric(of.model)
    one, three = (mean_gradients(of, metric, steps=7, at_once=n) for n in (1, 3))
    assert close(one.readers, three.readers)
    assert close(one.injected, three.injected)


@pytest.mark.parametrize("name", [PLAIN, RICH])
def test_what_leaves_the_injection_approaches_the_whole_effect(name: str) -> None:
    of = steered(model(name))
    base, top, metric = record(of, 0.0), record(of, 1.0), listed().metric(of.model)
    with torch.no_grad():
        effect = float(metric(of.run(Actor(), 1.0)) - metric(of.run(Actor(), 0.0)))
    errors = []
    for steps in (2, 16, 128):
        gradients = mean_gradients(of, metric, steps, at_once=16)
        scores = edge_scores(of, gradients, top, base)
        # the injection's edges together are the injection itself, dimension by dimension too
        dimensions = (gradients.injected * of.added).sum()
        assert float(scores[0].sum()) == pytest.approx(float(dimensions), rel=1e-9)
        errors.append(abs(float(scores[0].sum()) - effect) / abs(effect))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 1e-4


@pytest.mark.parametrize("name", [PLAIN, "tiny-gemma3"])
def test_in_a_linear_model_scores_are_exact_effects(name: str) -> None:
    of = steered(linearised(name))
    base, top, metric = record(of, 0.0), record(of, 1.0), listed().metric(of.model)
    with torch.no_grad():
        effect = float(metric(of.run(Actor(), 1.0)) - metric(of.run(Actor(), 0.0)))
    assert abs(effect) > 0.1
    scores = edge_scores(of, mean_gradients(of, metric, steps=1), top, base)
    exact = torch.zeros_like(scores)
    for reader in range(len(of.graph.readers)):
        writers = np.flatnonzero(of.graph.edges[:, reader])
        with torch.no_grad():
            after = patched(of, base, top, metric, reader, writers.tolist())
            exact[writers, reader] = after - metric(of.run(Actor(), 0.0))
    assert torch.allclose(scores, exact, rtol=1e-6, atol=1e-7 * abs(effect))
    # any cut carries the whole effect: the injection's edges, the unembedding's, and those over a layer
    assert float(scores[0].sum()) == pytest.approx(effect, rel=1e-6)
    assert float(scores[:, -1].sum()) == pytest.approx(effect, rel=1e-6)
    middle = of.graph.first + 1
    over = scores[: of.graph.heads_of(middle).start, of.graph.reader("query", middle) :]
    assert float(over.sum()) == pytest.approx(effect, rel=1e-6)


# --- value vectors


class OntoOneToken(Actor):
    """All attention of one layer goes to one token."""

    def __init__(self, layer: int, token: int) -> None:
        self.layer, self.token = layer, token

    def weights(self, layer: int, weights: Tensor) -> Tensor:
        forced = torch.zeros_like(weights)
        forced[..., self.token] = 1
        return forced if layer == self.layer else weights


@pytest.mark.parametrize("name", FAMILIES)
def test_a_value_vector_is_what_a_head_writes_of_the_vector_alone(name: str) -> None:
    """Forced onto a token whose stream is all vector, a head writes its value vector over the norm's length.

    Of two opposite vectors half the difference is left: biases of the values and the stream below cancel.
    """
    of, token, size = model(name), 7, 1e9
    vector, layer = direction(of), INJECTED + 1
    block = of.blocks[layer]
    with torch.no_grad():
        stream, rails = of.embed([TOKENS])
        stream = of.run(stream, rails, Actor(), end=layer)
        ends = []
        for sign in (1, -1):
            pushed = stream.clone()
            pushed[0, token] += sign * size * vector
            ends.append(block.heads(pushed, rails, OntoOneToken(layer, token), None))
        written = block.write_apart((ends[0] - ends[1]) / 2)[0, :, -1]
    wanted = value_vectors(of, layer, vector) * of.width**0.5 / vector.norm()
    if block.behind_attention:
        # Gemma's norm behind the attention, which divides by the length of what all heads wrote
        wanted = wanted * block.behind_attention.scale(wanted.sum(0) / block.behind_attention.weight)
    assert close(written, wanted, 1e-6)


def test_a_graph_by_hand() -> None:
    """One block of two heads behind the injection: five readers, four writers."""
    graph = Graph(injected=0, layers=2, heads=2)
    assert [(w.kind, w.layer, w.head) for w in graph.writers] == [
        ("injected", 0, -1),
        ("head", 1, 0),
        ("head", 1, 1),
        ("mlp", 1, -1),
    ]
    assert [reader.kind for reader in graph.readers] == ["query", "key", "value", "mlp", "unembedding"]
    assert graph.edges.astype(int).tolist() == [
        [1, 1, 1, 1, 1],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1],
    ]
    # head 0 into the MLP leads nowhere without the MLP's own edge; head 1 is never reached
    edges = np.zeros((4, 5), bool)
    edges[0, 3] = edges[1, 3] = edges[2, 4] = True
    assert not graph.on_whole_paths(edges).any()
    edges[3, 4] = True
    assert np.argwhere(graph.on_whole_paths(edges)).tolist() == [[0, 3], [3, 4]]
    edges[0, 2] = True
    assert (graph.on_whole_paths(edges) == edges).all()
    # the largest scores first, until three edges lie on whole paths
    scores = np.zeros((4, 5))
    scores[1, 3], scores[0, 4], scores[0, 0], scores[1, 4] = 9, 8, 7, 6
    found = graph.circuit(graph.by_score(scores), 3)
    assert np.argwhere(found).tolist() == [[0, 0], [0, 4], [1, 4]]


def test_the_record_of_a_pass_is_the_pass() -> None:
    of = steered(model(PLAIN))
    found = record(of, 1.0)
    added = found.streams[INJECTED + 1] - record(of, 0.0).streams[INJECTED + 1]
    assert close(added[0], of.added)
    for layer in range(INJECTED + 1, of.model.layers):
        middle = found.streams[layer] + of.model.blocks[layer].write(found.written[layer])
        assert close(found.middles[layer], middle)
        assert close(found.streams[layer + 1], middle + found.mlps[layer])
    assert isinstance(found, Record)
    assert isinstance(of.model, Model)


def test_listed_positions_are_where_transformers_differs() -> None:
    of = model(PLAIN, "float32")
    text = Text("How is it?", "We saw a tent at the gate, and a boat.", "unsteered")
    prompt = rendered(of.tokenizer, text)
    push = direction(of, length=12.0).float()
    graph = Graph(INJECTED, of.layers, of.heads)
    case = case_of(text, prompt, steer(of, graph, prompt, push, 1.0, "after_prompt"))
    start = prompt.template_length - 1  # the last token of the header predicts the response's first

    def add(module: Any, inputs: Any, output: Tensor) -> Tensor:
        output[:, start:] += push
        return output

    ids = torch.tensor([prompt.token_ids])
    with torch.no_grad():
        unsteered = of.whole(input_ids=ids).logits[0].argmax(-1)
        handle = of.whole.model.layers[INJECTED].register_forward_hook(add)
        pushed = of.whole(input_ids=ids).logits[0].argmax(-1)
        handle.remove()
    wanted = [
        (n, int(pushed[n]), int(unsteered[n]))
        for n in range(start, len(prompt.token_ids) - 1)
        if pushed[n] != unsteered[n]
    ]
    listed = case.listed
    found = zip(listed.positions.tolist(), listed.steered.tolist(), listed.unsteered.tolist(), strict=True)
    assert list(found) == wanted
    assert 0 < len(wanted) < len(prompt.token_ids) - 1 - start
