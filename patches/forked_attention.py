"""Seam: the attention, norms, rotations and activations of vLLM's layers while the forked pass runs.

Their attention would read the paged cache. On a CPU the others are made of small steps, which cost as much
as a layer's products where nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from vllm import _custom_ops
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.platforms import current_platform

Attend = Callable[..., Any]


@contextmanager
def replaced(layers: Sequence[Any], make: Callable[[int, Any], Attend]) -> Iterator[None]:
    """`make(layer, attention)` gives what answers in place of each layer's attention."""
    modules = [layer.self_attn.attn for layer in layers]
    faster = {part: fast for layer in layers for part in layer.modules() if (fast := _faster(part))}
    methods = {part: part._forward_method for part in faster}
    try:
        for layer, module in enumerate(modules):
            # the instance's own attribute stands before its class's
            module.forward = make(layer, module)
        for part, method in faster.items():
            part._forward_method = method
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)
        for part, method in methods.items():
            part._forward_method = method


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
        self._sinks: torch.Tensor | None = impl.sinks

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
            self._sinks,
        )
        return out


def _faster(part: Any) -> Callable[..., Any] | None:
    """What does the same as a part of a layer in fewer steps, on a CPU, where nothing is compiled."""
    if not current_platform.is_cpu():
        return None
    if isinstance(part, RMSNorm) and (
        type(part).forward_native is RMSNorm.forward_native
        and part.variance_size_override is None
        and part.has_weight
        and hasattr(torch.ops._C, "fused_add_rms_norm")
    ):
        return _fast_norm(part, part._forward_method)
    if hasattr(part, "cos_sin_cache"):
        # a rotation by vLLM's kernel, in place of the small steps that it hands to its compiler
        kernel: Callable[..., Any] = part.forward_cpu
        return kernel
    return _silu_and_mul if type(part) is SiluAndMul else None


def _fast_norm(norm: Any, method: Callable[..., Any]) -> Callable[..., Any]:
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


def _silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """As vLLM has it, with one tensor less to make room for."""
    half = x.shape[-1] // 2
    return functional.silu(x[..., :half]).mul_(x[..., half:])
