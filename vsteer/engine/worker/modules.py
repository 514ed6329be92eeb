"""The steered forward of one decoder layer: x += sum over slots of scale * direction, then the modules of
other operations, such as x -= (x.r)r; and its capture.

The arrays are non-persistent buffers of a module on the layer: no globals, and nothing in the graph
tells one layer from another, so the compiler still sees identical layers. `bank` and `token_cell`
are one tensor shared by all layers; `row` and `scale` belong to the layer.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from vsteer.engine.table import Capacity
from vsteer.operations import PLACES


class Steering(nn.Module):
    bank: torch.Tensor
    token_cell: torch.Tensor
    row: torch.Tensor
    scale: torch.Tensor

    def __init__(self, bank: torch.Tensor, token_cell: torch.Tensor, capacity: Capacity) -> None:
        super().__init__()
        shape = (capacity.cells, capacity.terms)
        for name, tensor in (
            ("bank", bank),
            ("token_cell", token_cell),
            ("row", torch.zeros(shape, dtype=torch.int32, device=bank.device)),
            ("scale", torch.zeros(shape, dtype=torch.float32, device=bank.device)),
        ):
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, stream: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`stream` with every token's terms added, summed in float32, as `dtype`."""
        tokens = stream.shape[0]
        cell = self.token_cell[:tokens]
        row = self.row.index_select(0, cell).flatten()
        scale = self.scale.index_select(0, cell).flatten()
        added = self.bank.index_select(0, row) * scale.unsqueeze(-1)
        added = added.view(tokens, -1, stream.shape[-1]).sum(dim=1)
        return (stream.float() + added).to(dtype)


class Placed(nn.Module):
    """An operation with one direction of length 1 and one size for each token and place; row 0, zeros, where
    it has none. It is only in the graph of an engine that was started for it.
    """

    bank: torch.Tensor
    token_cell: torch.Tensor
    row: torch.Tensor
    size: torch.Tensor
    # where in the graph it is at all
    places: ClassVar[tuple[str, ...]] = PLACES

    def __init__(self, bank: torch.Tensor, token_cell: torch.Tensor, capacity: Capacity) -> None:
        super().__init__()
        shape = (len(PLACES), capacity.cells)
        for name, tensor in (
            ("bank", bank),
            ("token_cell", token_cell),
            ("row", torch.zeros(shape, dtype=torch.int32, device=bank.device)),
            ("size", torch.zeros(shape, dtype=torch.float32, device=bank.device)),
        ):
            self.register_buffer(name, tensor, persistent=False)

    def forward(
        self, place: int, hidden: torch.Tensor | None, residual: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """`residual`, such that `hidden + residual` is what the operation makes of it."""
        cell = self.token_cell[: residual.shape[0]]
        direction = self.bank.index_select(0, self.row[place].index_select(0, cell))
        size = self.size[place].index_select(0, cell).unsqueeze(-1)
        return (residual.float() + self.times(direction, size, hidden, residual) * direction).to(dtype)

    def times(
        self,
        direction: torch.Tensor,
        size: torch.Tensor,
        hidden: torch.Tensor | None,
        residual: torch.Tensor,
    ) -> torch.Tensor:
        """How many times the direction is added to the stream."""
        raise NotImplementedError


class SetComponent(Placed):
    """Sets the stream's component along the direction to the size; 0 takes it away. It reads `hidden`."""

    def times(
        self,
        direction: torch.Tensor,
        size: torch.Tensor,
        hidden: torch.Tensor | None,
        residual: torch.Tensor,
    ) -> torch.Tensor:
        stream = residual.float() if hidden is None else residual.float() + hidden.float()
        return size - (stream * direction).sum(dim=-1, keepdim=True)


class AddBehindAttention(Placed):
    places = ("attention",)

    def times(
        self,
        direction: torch.Tensor,
        size: torch.Tensor,
        hidden: torch.Tensor | None,
        residual: torch.Tensor,
    ) -> torch.Tensor:
        return size


class Capture(nn.Module):
    """Copies the stream of the step's chosen tokens into the layer's slots.

    It is only in the graph of an engine that was started to capture: reading the sum of hidden and residual
    keeps `hidden` alive past vLLM's fusion of all-reduce and RMSNorm.
    """

    chosen: torch.Tensor
    streams: torch.Tensor

    def __init__(self, chosen: torch.Tensor, hidden_size: int) -> None:
        super().__init__()
        streams = torch.zeros((len(chosen), hidden_size), dtype=torch.float32, device=chosen.device)
        self.register_buffer("chosen", chosen, persistent=False)
        self.register_buffer("streams", streams, persistent=False)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> None:
        hidden, residual = (x.index_select(0, self.chosen).float() for x in (hidden, residual))
        self.streams.copy_(hidden + residual)


def shared_buffers(
    capacity: Capacity, hidden_size: int, max_tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The bank and the step's token cells, one of each for all layers of a rank."""
    bank = torch.zeros((capacity.rows, hidden_size), dtype=torch.float32, device=device)
    return bank, torch.zeros(max_tokens, dtype=torch.int32, device=device)
