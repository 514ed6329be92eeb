"""The model families that steer: one record a family, without torch.

A family is listed once its parity suite passes. Another one needs a record here and its seams in
engine/seams.json, and tests/engine/test_families.py then tries it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    # as vLLM's and transformers' classes begin
    name: str
    # what vLLM's class takes over from another family's, so that it is no seam of its own
    inherited: tuple[str, ...] = ()
    # Gemma's norms multiply by 1 + weight, stand behind the attention and around the MLP too, and its
    # embedding is multiplied by the root of the width.
    gemma_norms: bool = False
    query_key_norms: bool = False
    attention_bias: bool = False
    # The configuration of its tiny test model, where it is another than tiny-llama's. Windows are shorter
    # than the tests' prompts, so that what lies outside of a window matters.
    tiny: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """As a model's config.json names it."""
        return f"{self.name}ForCausalLM"

    @property
    def vllm_module(self) -> str:
        return f"vllm.model_executor.models.{self.name.lower()}"

    @property
    def steered(self) -> str:
        """Our class, as vLLM's registry takes it."""
        return f"vsteer.engine.worker.families:Steered{self.architecture}"

    @property
    def tiny_model(self) -> str:
        return f"tiny-{self.name.lower()}"

    @property
    def seams(self) -> tuple[str, ...]:
        """What is leaned on in vLLM: that a layer returns (hidden, residual), and what calls it."""
        inside = ("DecoderLayer.forward", "Model.forward", "ForCausalLM.__init__", "ForCausalLM.forward")
        return tuple(f"{self.vllm_module}.{self.name}{part}" for part in inside if part not in self.inherited)


_WINDOW = 64
_SLIDING, _FULL = "sliding_attention", "full_attention"
_GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 32,
    "sliding_window": _WINDOW,
    # the embedding is the output layer too
    "tie_word_embeddings": True,
}

FAMILIES = (
    Family("Llama"),
    Family("Mistral", inherited=("ForCausalLM.forward",), tiny={"sliding_window": _WINDOW}),
    Family("Qwen2", attention_bias=True, tiny={"use_sliding_window": False}),
    Family("Qwen3", inherited=("Model.forward",), query_key_norms=True, tiny={"use_sliding_window": False}),
    Family(
        "Gemma2",
        gemma_norms=True,
        tiny={
            **_GEMMA,
            "layer_types": [_SLIDING, _FULL] * 3,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    Family(
        "Gemma3",
        gemma_norms=True,
        query_key_norms=True,
        tiny={
            "model_type": "gemma3_text",
            **_GEMMA,
            "layer_types": [_SLIDING] * 5 + [_FULL],
            "rope_parameters": {
                _SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
                _FULL: {"rope_type": "default", "rope_theta": 1000000.0},
            },
        },
    ),
)
# architecture -> family
BY_ARCHITECTURE = {family.architecture: family for family in FAMILIES}
