"""Tiny models in float64, and a text of theirs behind an injection."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from tests.tiny_families import folder_of
from vsteer.mechanism.graph import Graph
from vsteer.mechanism.model import Actor, Model
from vsteer.mechanism.passes import Record, Steered
from vsteer.mechanism.texts import Listed

INJECTED = 2
TOKENS = [5, 90, 17, 33, 201, 64, 7, 150, 28, 99, 41]
# one without norms behind the attention, and the one with most of what a family may have
PLAIN, RICH = "tiny-llama", "tiny-gemma2"
OTHERS = ("tiny-mistral", "tiny-qwen2", "tiny-qwen3", "tiny-gemma3")
FAMILIES = (PLAIN, RICH, *(pytest.param(name, marks=pytest.mark.long) for name in OTHERS))


@cache
def model(name: str, dtype: str = "float64") -> Model:
    return Model.load(folder_of(name), dtype=dtype)


def direction(of: Model, seed: int = 0, length: float = 3.0) -> torch.Tensor:
    found = torch.randn(of.width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    scaled: torch.Tensor = found * (length / found.norm())
    return scaled


def steered(of: Model, length: float = 3.0, start: int = 4) -> Steered:
    """From token `start` on."""
    with torch.no_grad():
        stream, rails = of.embed([TOKENS])
        stream = of.run(stream, rails, Actor(), end=INJECTED + 1)
    added = torch.zeros_like(stream[0])
    added[start:] = direction(of, length=length)
    return Steered(of, Graph(INJECTED, of.layers, of.heads), rails, stream, added)


def record(of: Steered, scale: float) -> Record:
    found = Record()
    with torch.no_grad():
        of.run(found, scale)
    return found


def listed() -> Listed:
    """Two positions, and tokens that differ at each."""
    return Listed(torch.tensor([6, 9]), torch.tensor([12, 40]), torch.tensor([300, 77]))


class Ones(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(x)


def linearised(name: str) -> Model:
    """A model in which everything behind the injection is linear in the stream.

    Norms with an enormous eps divide by a constant, attention is uniform, and an MLP's gate is 1.
    """
    of = Model.load(folder_of(name), dtype="float64")
    norms = [of.final_norm]
    for block in of.blocks:
        norms += [block.before_attention, block.before_mlp]
        norms += [norm for norm in (block.behind_attention, block.behind_mlp) if norm]
        block.attention.q_proj.weight.zero_()
        block.attention.k_proj.weight.zero_()
        block.query_norm = block.key_norm = None
        block.mlp.act_fn = Ones()
    for norm in norms:
        norm.eps, norm.weight = 1e16, norm.weight * 1e8
    of.softcap = None
    return of
