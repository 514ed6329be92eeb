"""Seam: the attention and the norms of vLLM's layers while the forked pass runs.

Its attention would read the paged cache, and on a CPU its norms are made of a dozen small steps, which cost
as much as a layer's products where nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from vllm import _custom_ops
from vllm.model_executor.layers.layernorm import RMSNorm

Attend = Callable[..., Any]


@contextmanager
def replaced(layers: Sequence[Any], make: Callable[[int, Any], Attend]) -> Iterator[None]:
    """`make(layer, attention)` gives what answers in place of each layer's attention."""
    modules = [layer.self_attn.attn for layer in layers]
    norms = [
        norm
        for layer in layers
        for norm in layer.modules()
        if isinstance(norm, RMSNorm) and _has_kernel(norm)
    ]
    methods = [norm._forward_method for norm in norms]
    try:
        for layer, module in enumerate(modules):
            # the instance's own attribute stands before its class's
            module.forward = make(layer, module)
        for norm, method in zip(norms, methods, strict=True):
            norm._forward_method = _kernel_norm(norm, method)
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)
        for norm, method in zip(norms, methods, strict=True):
            norm._forward_method = method


@contextmanager
def narrowed(norm: Any, rows: torch.Tensor) -> Iterator[None]:
    """Let a norm take (hidden, residual) where `hidden` has only these rows of `residual`."""
    method = norm._forward_method
    norm._forward_method = lambda hidden, residual: method(hidden, residual[rows])
    try:
        yield
    finally:
        norm._forward_method = method


class PagedKernel:
    """vLLM's attention for CPUs, by which its requests are computed, over another cache than vLLM's."""

    BLOCK = 32  # tokens; the kernel takes multiples of it

    def __init__(self, module: Any) -> None:
        impl = module.impl
        self._shape = (module.num_kv_heads, 2 * self.BLOCK, module.head_size)
        self._heads, self._scale, self._isa = module.num_heads, impl.scale, module.isa
        self.window: int = impl.sliding_window
        self._cap = impl.logits_soft_cap

    @staticmethod
    def serves(module: Any) -> bool:
        """Whether the layer's attention is this kernel; its isa is set with its cache."""
        return type(module.impl).__name__ == "CPUAttentionBackendImpl" and hasattr(module, "isa")

    def cache(self, blocks: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, zeros: a block's end is read too, though it counts for nothing."""
        keys, values = like.new_zeros(blocks, *self._shape).chunk(2, dim=2)
        return keys, values

    def put(
        self,
        cache: tuple[torch.Tensor, torch.Tensor],
        key: torch.Tensor,
        value: torch.Tensor,
        slots: torch.Tensor,
    ) -> None:
        _custom_ops.cpu_attn_reshape_and_cache(key, value, *cache, slots, self._isa)

    def schedule(self, dtype: torch.dtype, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """How the kernel deals sequences to cores: for each, where its queries start and how long it is."""
        heads, size = self._shape[0], self._shape[2]
        schedule: torch.Tensor = _custom_ops.cpu_attn_get_scheduler_metadata(
            len(lengths),
            self._heads,
            heads,
            size,
            lengths,
            dtype,
            starts,
            True,
            self.window,
            self._isa,
            True,
        )
        return schedule

    def attend(
        self,
        query: torch.Tensor,
        cache: tuple[torch.Tensor, torch.Tensor],
        starts: torch.Tensor,
        lengths: torch.Tensor,
        blocks: torch.Tensor,
        schedule: torch.Tensor,
    ) -> torch.Tensor:
        out = torch.empty_like(query)
        _custom_ops.cpu_attention_with_kv_cache(
            query,
            *cache,
            out,
            starts,
            lengths,
            self._scale,
            True,
            None,
            self.window,
            blocks,
            self._cap,
            schedule,
            None,
        )
        return out


def _has_kernel(norm: RMSNorm) -> bool:
    return (
        norm.weight.device.type == "cpu"
        and type(norm).forward_native is RMSNorm.forward_native
        and norm.variance_size_override is None
        and norm.has_weight
        and hasattr(torch.ops._C, "fused_add_rms_norm")
    )


def _kernel_norm(norm: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    """The norm by one kernel, as vLLM has it on a GPU; it writes over what it is given."""
    weight: torch.Tensor = norm.weight.data
    epsilon: float = norm.variance_epsilon

    def forward(x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if x.dtype != weight.dtype or not x.is_contiguous():
            return method(x, residual)
        if residual is None:
            out = torch.empty_like(x)
            torch.ops._C.rms_norm(out, x, weight, epsilon)
            return out
        torch.ops._C.fused_add_rms_norm(x, residual, weight, epsilon)
        return x, residual

    return forward
