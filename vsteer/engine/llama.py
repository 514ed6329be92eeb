"""Llama with a steered stream, registered in place of vLLM's own class.

Without a vsteer section in the engine's configuration it builds the stock model, layer for layer.
vLLM's layer returns (hidden, residual) and the stream is their sum; the add goes to `residual`,
since an add on the all-reduced `hidden` would break vLLM's fusion of all-reduce and RMSNorm.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM

from vsteer.engine.steered_model import SteeredModel, steered
from vsteer.engine.steering import Capture, Steering


class SteeredLlamaDecoderLayer(LlamaDecoderLayer):
    steering: Steering
    capture: Capture | None

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_states, residual = super().forward(positions, hidden_states, residual)
        residual = self.steering(residual)
        if self.capture is not None:
            self.capture(hidden_states, residual)
        return hidden_states, residual


class SteeredLlamaForCausalLM(SteeredModel, LlamaForCausalLM):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **kwargs: Any) -> None:
        if steered(vllm_config):
            kwargs["layer_type"] = SteeredLlamaDecoderLayer
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
        self.init_steering(vllm_config)
