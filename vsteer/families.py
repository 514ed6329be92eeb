"""The model families that steer: one record a family, without torch.

A family is listed once its parity suite passes. Another one needs a record here, its seams in
engine/seams.json, and its record in tests/tiny_families.py, by which tests/engine/test_families.py tries it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    # as vLLM's and transformers' classes begin
    name: str
    # what vLLM's class takes over from another family's, so that it is no seam of its own
    inherited: tuple[str, ...] = ()

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
    def seams(self) -> tuple[str, ...]:
        """What is leaned on in vLLM: that a layer returns (hidden, residual), and what calls it."""
        inside = ("DecoderLayer.forward", "Model.forward", "ForCausalLM.__init__", "ForCausalLM.forward")
        return tuple(f"{self.vllm_module}.{self.name}{part}" for part in inside if part not in self.inherited)


FAMILIES = (
    Family("Llama"),
    Family("Mistral", inherited=("ForCausalLM.forward",)),
    Family("Qwen2"),
    Family("Qwen3", inherited=("Model.forward",)),
    Family("Gemma2"),
    Family("Gemma3"),
)
# architecture -> family
BY_ARCHITECTURE = {family.architecture: family for family in FAMILIES}
