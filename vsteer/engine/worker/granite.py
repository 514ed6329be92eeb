"""Granite, whose layers take and return the stream as one tensor and scale what they add to it.

Its layer is written out in the two parts that the other families have, so that all that acts on those acts
here too: behind the attention, behind the layer, and in the forked pass.
"""

from __future__ import annotations

from typing import Any

import torch

from vsteer.engine.worker.layer import SteeredLayer
from vsteer.engine.worker.model import SteeredModel


class SteeredGraniteLayer(SteeredLayer):
    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        # only the first layer's stream is the embedding, which comes alone
        parts = (hidden_states, None) if self.first else (torch.zeros_like(hidden_states), hidden_states)
        hidden, residual = self.acting(positions, *parts)
        return hidden + residual

    def unsteered(
        self: Any,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        added = self.self_attn(positions=positions, hidden_states=hidden_states) * self.residual_multiplier
        hidden_states, residual = self.post_attention_layernorm(added, residual)
        return self.mlp(hidden_states) * self.residual_multiplier, residual


class SteeredGranite(SteeredModel):
    steered_layer = SteeredGraniteLayer

    def embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        multiplier: float = self.model.config.embedding_multiplier
        return super().embedded(tokens) * multiplier
