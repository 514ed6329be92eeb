"""The model families that steer: one record a family, without torch.

A family is listed once its parity suite passes: docs/families.md says how one is added, and why some are not
here. tests/tiny_families.py has a record for each, by which tests/engine/test_families.py tries it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

INSIDE = ("Model.forward", "ForCausalLM.__init__", "ForCausalLM.forward")


@dataclass(frozen=True)
class Family:
    # as vLLM's and transformers' classes begin
    name: str
    # vLLM's class of a layer, if it is called otherwise; empty where it is another family's
    layer: str | None = None
    # what vLLM's classes take over from another family's, so that it is no seam of its own
    inherited: tuple[str, ...] = ()
    # what is mixed into vLLM's class, as pkgutil.resolve_name takes it
    mixin: str = "vsteer.engine.worker.model:SteeredModel"
    # whether what a layer's attention gives is added to the stream as it is, neither normed nor scaled
    attention_as_it_is: bool = True
    # whether vsteer/mechanism/model.py writes out its blocks
    mechanism: bool = False

    @property
    def architecture(self) -> str:
        """As a model's config.json names it."""
        return f"{self.name}ForCausalLM"

    @property
    def module(self) -> str:
        """As vLLM's and transformers' modules are called."""
        return re.sub("(?<=.)(?=[A-Z])", "_", self.name).lower()

    @property
    def vllm_module(self) -> str:
        return f"vllm.model_executor.models.{self.module}"

    @property
    def steered(self) -> str:
        """Our class, as vLLM's registry takes it."""
        return f"vsteer.engine.worker.families:Steered{self.architecture}"

    @property
    def seams(self) -> tuple[str, ...]:
        """What is leaned on in vLLM: what a layer returns, and what calls it."""
        layer = f"{self.name}DecoderLayer" if self.layer is None else self.layer
        own = [self.name + part for part in INSIDE if part not in self.inherited]
        own += [f"{layer}.forward"] if layer else []
        return tuple(f"{self.vllm_module}.{part}" for part in own or [self.architecture])


FAMILIES = (
    Family("Llama", mechanism=True),
    Family("Mistral", inherited=("ForCausalLM.forward",), mechanism=True),
    Family("Qwen2", mechanism=True),
    Family("Qwen3", inherited=("Model.forward",), mechanism=True),
    Family("Qwen3Moe"),
    Family("Mixtral"),
    Family("Phi3", layer="", inherited=INSIDE),
    Family("Glm4", inherited=("Model.forward",), attention_as_it_is=False),
    Family("Granite", mixin="vsteer.engine.worker.granite:SteeredGranite", attention_as_it_is=False),
    Family("GptOss", layer="TransformerBlock", mixin="vsteer.engine.worker.gpt_oss:SteeredGptOss"),
    Family("Gemma2", attention_as_it_is=False, mechanism=True),
    Family("Gemma3", attention_as_it_is=False, mechanism=True),
)
# architecture -> family
BY_ARCHITECTURE = {family.architecture: family for family in FAMILIES}
