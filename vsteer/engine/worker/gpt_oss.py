"""gpt-oss, whose layers take their arguments in another order and call their attention otherwise."""

from __future__ import annotations

from typing import Any

import torch

from vsteer.engine.worker.layer import SteeredLayer
from vsteer.engine.worker.model import SteeredModel


class SteeredGptOssLayer(SteeredLayer):
    @property
    def self_attn(self: Any) -> Any:
        return self.attn

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor,
        residual: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.acting(positions, hidden_states, residual, **kwargs)

    def unsteered(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().unsteered(hidden_states, positions, residual, **kwargs)


class SteeredGptOss(SteeredModel):
    steered_layer = SteeredGptOssLayer
