"""A decoder layer of vLLM's with a steered stream, whatever its family.

A layer returns (hidden, residual) and the stream is their sum; the add goes to `residual`, since an add on
the all-reduced `hidden` would break vLLM's fusion of all-reduce and RMSNorm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from vsteer.engine.worker.modules import Capture, Placed, Steering
from vsteer.operations import PLACES

EMBEDDING, ATTENTION, LAYER = range(len(PLACES))
# The norm that takes (hidden, residual) and sums them behind the attention. In Gemma it is the first, and the
# norm with the second name comes before the sum.
BEHIND_ATTENTION = ("pre_feedforward_layernorm", "post_attention_layernorm")


class SteeredLayer(nn.Module):
    """Mixed in front of a layer's own class."""

    steering: Steering
    placed: nn.ModuleList
    capture: Capture | None
    first: bool

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.acting(positions, hidden_states, residual, **kwargs)

    def acting(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer with all that acts in it and behind it."""
        if self.placed and residual is None:
            hidden_states = _placed(self.placed, EMBEDDING, None, hidden_states, hidden_states.dtype)
        hidden_states, residual = self.unsteered(positions, hidden_states, residual, **kwargs)
        residual = self.steered(hidden_states, residual)
        if self.capture is not None:
            self.capture(hidden_states, residual)
        return hidden_states, residual

    def unsteered(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer as vLLM has it."""
        found: tuple[torch.Tensor, torch.Tensor] = super().forward(
            positions, hidden_states, residual, **kwargs
        )
        return found

    def steered(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """`residual` behind what acts behind the layer."""
        dtype = residual.dtype
        # what is added and then taken away must leave no rounding behind
        residual = self.steering(residual, torch.float32 if acting_at(self.placed, LAYER) else dtype)
        return _placed(self.placed, LAYER, hidden_states, residual, dtype)


class SteeredNorm(nn.Module):
    """Mixed in front of the norm behind a layer's attention."""

    placed: nn.ModuleList

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> Any:
        return super().forward(hidden, _placed(self.placed, ATTENTION, hidden, residual, residual.dtype))


def _placed(
    modules: nn.ModuleList,
    place: int,
    hidden: torch.Tensor | None,
    residual: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`residual` behind the modules at a place, rounded to `dtype` once, after the last."""
    acting = acting_at(modules, place)
    for module in acting:
        last = module is acting[-1]
        residual = module(place, hidden, residual, dtype if last else torch.float32)
    return residual


def acting_at(modules: Iterable[Any], place: int) -> list[Any]:
    """The modules that are in the graph there."""
    return [module for module in modules if PLACES[place] in module.places]


def steer_layer(
    layer: Any,
    steering: Steering,
    placed: Sequence[Placed],
    capture: Capture | None,
    steered: type[SteeredLayer] = SteeredLayer,
    first: bool = False,
) -> None:
    """Make a layer that was built by vLLM a steered one, before anything was compiled or run.

    `first` says whether it is the model's first, whose stream is the embedding.
    """
    layer.__class__ = _mixed(steered, type(layer))
    layer.first = first
    layer.steering, layer.placed, layer.capture = steering, nn.ModuleList(placed), capture
    if acting_at(placed, ATTENTION):
        norm = norm_behind_attention(layer)
        norm.__class__ = _mixed(SteeredNorm, type(norm))
        norm.placed = layer.placed


def norm_behind_attention(layer: Any) -> Any:
    """The one that sums (hidden, residual) there."""
    return next(getattr(layer, name) for name in BEHIND_ATTENTION if hasattr(layer, name))


_MIXED: dict[tuple[type, type], type] = {}


def _mixed(ours: type, theirs: type) -> type:
    """One class for all layers, so that the compiler still sees identical ones."""
    if (ours, theirs) not in _MIXED:
        name = f"{ours.__name__}Of{theirs.__name__}"
        _MIXED[ours, theirs] = type(name, (ours, theirs), {"__module__": __name__})
    return _MIXED[ours, theirs]
