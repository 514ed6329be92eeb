"""The steered forward of one decoder layer: x += sum over slots of scale * direction; and its capture.

The arrays are non-persistent buffers of a module on the layer: no globals, and nothing in the graph
tells one layer from another, so the compiler still sees identical layers. `bank` and `token_cell`
are one tensor shared by all layers; `row` and `scale` belong to the layer.
"""

from __future__ import annotations

import torch
from torch import nn

from vsteer.engine.table import Capacity


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

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """`stream` with every token's terms added, summed in float32."""
        tokens = stream.shape[0]
        cell = self.token_cell[:tokens]
        row = self.row.index_select(0, cell).flatten()
        scale = self.scale.index_select(0, cell).flatten()
        added = self.bank.index_select(0, row) * scale.unsqueeze(-1)
        added = added.view(tokens, -1, stream.shape[-1]).sum(dim=1)
        return (stream.float() + added).to(stream.dtype)


class Capture(nn.Module):
    """Copies the stream of the step's chosen tokens into the layer's slots.

    Only in the graph of an engine that was started to capture: reading the sum of hidden and residual keeps
    `hidden` alive past vLLM's fusion of all-reduce and RMSNorm.
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
