"""A decoder layer of vLLM's with a steered stream, whichever family it is of.

A layer returns (hidden, residual) and the stream is their sum; the add goes to `residual`, since an add on
the all-reduced `hidden` would break vLLM's fusion of all-reduce and RMSNorm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vsteer.engine.table import PLACES
from vsteer.engine.worker.modules import Ablation, Capture, Steering

EMBEDDING, ATTENTION, LAYER = range(len(PLACES))
# The norm that takes (hidden, residual) and sums them behind the attention. In Gemma that is the first; what
# is called like the second there comes before the sum.
BEHIND_ATTENTION = ("pre_feedforward_layernorm", "post_attention_layernorm")


class SteeredLayer(nn.Module):
    """Mixed in front of a layer's own class."""

    steering: Steering
    ablation: Ablation | None
    capture: Capture | None

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.ablation is not None and residual is None:
            hidden_states = self.ablation(EMBEDDING, None, hidden_states, hidden_states.dtype)
        hidden_states, residual = super().forward(positions, hidden_states, residual, **kwargs)
        if self.ablation is None:
            residual = self.steering(residual, residual.dtype)
        else:
            # what is added and then taken away must leave no rounding behind
            added = self.steering(residual, torch.float32)
            residual = self.ablation(LAYER, hidden_states, added, residual.dtype)
        if self.capture is not None:
            self.capture(hidden_states, residual)
        return hidden_states, residual


class AblatedNorm(nn.Module):
    """Mixed in front of the norm behind a layer's attention."""

    ablation: Ablation

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> Any:
        return super().forward(hidden, self.ablation(ATTENTION, hidden, residual, residual.dtype))


def steer_layer(layer: Any, steering: Steering, ablation: Ablation | None, capture: Capture | None) -> None:
    """Make a layer that was built by vLLM a steered one, before anything was compiled or run."""
    layer.__class__ = _mixed(SteeredLayer, type(layer))
    layer.steering, layer.ablation, layer.capture = steering, ablation, capture
    if ablation is not None:
        norm = next(getattr(layer, name) for name in BEHIND_ATTENTION if hasattr(layer, name))
        norm.__class__ = _mixed(AblatedNorm, type(norm))
        norm.ablation = ablation


_MIXED: dict[tuple[type, type], type] = {}


def _mixed(ours: type, theirs: type) -> type:
    """One class for all layers, so that the compiler still sees identical ones."""
    if (ours, theirs) not in _MIXED:
        name = f"{ours.__name__}Of{theirs.__name__}"
        _MIXED[ours, theirs] = type(name, (ours, theirs), {"__module__": __name__})
    return _MIXED[ours, theirs]
