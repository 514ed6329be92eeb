"""What the compiler sees of a steered layer: nothing of what the engine was not started for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vsteer.engine.table import Capacity
from vsteer.engine.worker.layer import steer_layer
from vsteer.engine.worker.modules import (
    AddBehindAttention,
    Capture,
    Placed,
    SetComponent,
    Steering,
    shared_buffers,
)

HIDDEN, TOKENS = 8, 5
CAPACITY = Capacity(cells=3, rows=2, terms=2)


class Norm(nn.Module):
    """vLLM's norms sum what they are given and return the sum too."""

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        residual = hidden + residual
        return torch.nn.functional.rms_norm(residual, (HIDDEN,)), residual


class Layer(nn.Module):
    """In the shape of vLLM's decoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.post_attention_layernorm = Norm()
        self.mlp = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual = hidden_states
        hidden_states, residual = self.post_attention_layernorm(self.attention(hidden_states), residual)
        return self.mlp(hidden_states), residual


class Added(Layer):
    """What a layer that only adds is, by hand: x += the sum over its slots of scale * direction."""

    steering: Steering

    def forward(self, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, residual = super().forward(*args)
        tokens = residual.shape[0]
        cell = self.steering.token_cell[:tokens]
        row = self.steering.row.index_select(0, cell).flatten()
        scale = self.steering.scale.index_select(0, cell).flatten()
        added = self.steering.bank.index_select(0, row) * scale.unsqueeze(-1)
        added = added.view(tokens, -1, HIDDEN).sum(dim=1)
        return hidden, (residual.float() + added).to(residual.dtype)


def steered(*placed: type[Placed], captures: int = 0) -> nn.Module:
    bank, cells = shared_buffers(CAPACITY, HIDDEN, TOKENS, torch.device("cpu"))
    layer = Layer()
    steer_layer(
        layer,
        Steering(bank, cells, CAPACITY),
        [kind(bank, cells, CAPACITY) for kind in placed],
        Capture(torch.zeros(captures, dtype=torch.int32), HIDDEN) if captures else None,
    )
    return layer


def by_hand() -> nn.Module:
    bank, cells = shared_buffers(CAPACITY, HIDDEN, TOKENS, torch.device("cpu"))
    layer = Added()
    layer.steering = Steering(bank, cells, CAPACITY)
    return layer


def graph_of(layer: nn.Module, first: bool) -> list[tuple[str, str, str]]:
    """What is computed, step by step, as the compiler gets it."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    stream = torch.ones(TOKENS, HIDDEN, dtype=torch.bfloat16)
    residual = None if first else stream.clone()
    with torch.no_grad():
        torch.compile(layer.bfloat16(), backend=keep, fullgraph=True)(torch.arange(TOKENS), stream, residual)
    (graph,) = graphs
    nodes = list(graph.graph.nodes)
    # by their places: the names are of no matter
    places = {node: f"%{place}" for place, node in enumerate(nodes)}
    return [
        (
            node.op,
            str(node.meta["example_value"].shape) if node.op == "placeholder" else str(node.target),
            str(torch.fx.node.map_arg(node.args, places.__getitem__)),
        )
        for node in nodes
    ]


@pytest.mark.parametrize("first", [True, False])
def test_without_ablation_and_capture_the_graph_is_that_of_the_add_alone(first: bool) -> None:
    assert graph_of(steered(), first) == graph_of(by_hand(), first)


@pytest.mark.parametrize("first", [True, False])
def test_with_them_it_is_another(first: bool) -> None:
    plain = len(graph_of(steered(), first))
    assert len(graph_of(steered(SetComponent), first)) > plain
    assert len(graph_of(steered(captures=2), first)) > plain


@pytest.mark.parametrize("first", [True, False])
def test_what_is_added_behind_the_attention_is_nowhere_else_in_the_graph(first: bool) -> None:
    """Two lookups and a product in front of the norm's sum, and no sum of hidden and residual."""
    plain, added = graph_of(steered(), first), graph_of(steered(AddBehindAttention), first)
    sums = [sum("add" in target for _, target, _ in graph) for graph in (plain, added)]
    assert sums[1] == sums[0] + 1
    ablated = graph_of(steered(SetComponent), first)
    assert len(plain) < len(added) < len(ablated)
