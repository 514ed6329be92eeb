"""The families that steer: each is vLLM's own class, mixed with the steered stream, registered in its place.

In all of them a layer returns (hidden, residual) and the stream is their sum, with whatever norms a family
has around its MLP (Gemma) already in `hidden`; so the layers need no code of a family's own.
"""

from __future__ import annotations

from vllm.model_executor.models.gemma2 import Gemma2ForCausalLM
from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from vsteer.engine.worker.model import SteeredModel


class SteeredGemma2ForCausalLM(SteeredModel, Gemma2ForCausalLM):
    pass


class SteeredGemma3ForCausalLM(SteeredModel, Gemma3ForCausalLM):
    pass


class SteeredLlamaForCausalLM(SteeredModel, LlamaForCausalLM):
    pass


class SteeredMistralForCausalLM(SteeredModel, MistralForCausalLM):
    pass


class SteeredQwen2ForCausalLM(SteeredModel, Qwen2ForCausalLM):
    pass


class SteeredQwen3ForCausalLM(SteeredModel, Qwen3ForCausalLM):
    pass
