"""The unembedding in float32, for a model that computes in 16 bits.

vLLM rounds logits as it rounds the stream. From 16 to 32 a step of bfloat16 is 0.125, which is more than
many steerings move an answer. Here the weights stay what they are, and the sums of their products, which are
made in float32 anyway, are kept as they come.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.models.utils import PPMissingLayer

from vsteer.engine.worker.float32_product import Product, bfloat16_product
from vsteer.errors import UnsupportedError


class Float32Unembedding(UnquantizedEmbeddingMethod):
    def __init__(self) -> None:
        super().__init__()
        self._reuses = False
        self._kept: torch.Tensor | None = None

    @contextmanager
    def reusing(self) -> Iterator[None]:
        """Let each product be written over the last, where a CPU makes it: who asks keeps none of them.

        Memory that is new to a process costs more than the product itself.
        """
        self._reuses = True
        try:
            yield
        finally:
            self._reuses = False

    def process_weights_after_loading(self, layer: Any) -> None:
        super().process_weights_after_loading(layer)
        if not layer.weight.is_cuda and self._product(layer.weight) is None:
            layer.float32_weight = layer.weight.float()

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        weight = layer.weight
        if x.is_cuda:
            logits = torch.mm(x, weight.t(), out_dtype=torch.float32)
        else:
            logits = self._room(len(x), weight)
            if product := self._product(weight):
                product(x.contiguous(), weight, logits)
            else:
                with _products_of(x.dtype):
                    torch.mm(x.float(), layer.float32_weight.t(), out=logits)
        return logits if bias is None else logits + bias.float()

    def _product(self, weight: torch.Tensor) -> Product | None:
        """The CPU's own for weights of 16 bits, which spares a copy of them in float32."""
        return bfloat16_product() if weight.dtype == torch.bfloat16 and weight.is_contiguous() else None

    def _room(self, rows: int, weight: torch.Tensor) -> torch.Tensor:
        if not self._reuses:
            return torch.empty(rows, len(weight), device=weight.device)
        if self._kept is None or len(self._kept) < rows:
            self._kept = torch.empty(rows, len(weight), device=weight.device)
        return self._kept[:rows]


def head_of(model: Any) -> Any:
    """Some families unembed by their embedding's own module."""
    return getattr(model, "lm_head", None) or model.model.embed_tokens


def reusing_logits(model: Any) -> AbstractContextManager[None]:
    """Logits that the model computes are overwritten by the next, where that is faster."""
    method = getattr(head_of(model), "quant_method", None)
    return method.reusing() if isinstance(method, Float32Unembedding) else nullcontext()


def unembed_in_float32(model: Any) -> None:
    """Change a model that was built by vLLM, before its weights are loaded."""
    head = head_of(model)
    if isinstance(head, PPMissingLayer):
        return  # a rank of a pipeline that has no logits
    if not isinstance(head.quant_method, (UnquantizedEmbeddingMethod, UnquantizedLinearMethod)):
        raise UnsupportedError(
            "this checkpoint's unembedding is quantised, and vsteer scores by an unembedding in float32",
            hint="use a checkpoint whose lm_head is not quantised, as most are",
        )
    head.quant_method = Float32Unembedding()


@contextmanager
def _products_of(dtype: torch.dtype) -> Iterator[None]:
    """Let a CPU's bfloat16 units, which sum in float32, multiply numbers that were bfloat16 before."""
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    if dtype == torch.bfloat16:
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
