"""Attention of forks: over the unsteered keys and values before a fork's span, and over its own behind it.

Both parts come with the logs of their sums of exponentials, by which they are put together as one softmax.
The part before the span is one matrix product for all forks of a prompt that begin at the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from vsteer.engine.forks import ForkBlock


@dataclass(eq=False)
class ForkPrompt:
    """A block on the device, and what its unsteered pass leaves for its forks."""

    block: ForkBlock
    positions: torch.Tensor
    sees: torch.Tensor
    first: int  # the earliest node that a fork computes for itself
    joins: frozenset[int]  # behind which layers forks join
    keys_values: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)  # of each layer
    # (hidden, residual) behind a layer, from `first` on
    streams: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = field(default_factory=dict)

    @property
    def nodes(self) -> int:
        return len(self.block.tokens)


@dataclass(frozen=True, eq=False)
class Mask:
    """What rows of queries must not see of a part's keys; None where they see all."""

    hides: torch.Tensor | None
    bias: torch.Tensor | None  # the same as what is added to scores
    blind: bool  # whether a row sees nothing of the part


@dataclass(frozen=True, eq=False)
class ForkGroup:
    """Forks of one prompt that begin at the same node; or the unsteered prompt, which begins at 0."""

    prompt: ForkPrompt
    begin: int
    rows: torch.Tensor  # of their tokens in the batch, [fork * node]
    # by window and part: every layer with that window has the same
    masks: dict[tuple[int | None, bool], Mask] = field(default_factory=dict)

    @classmethod
    def at(cls, prompt: ForkPrompt, begin: int, offsets: Sequence[int]) -> ForkGroup:
        nodes = torch.arange(prompt.nodes - begin, device=prompt.positions.device)
        rows = torch.tensor(offsets, device=nodes.device)[:, None] + nodes
        return cls(prompt, begin, rows.flatten())


class ForkAttention:
    """In place of one layer's attention. `groups` is what the batch is made of now."""

    def __init__(self, layer: int, module: Any) -> None:
        self.layer = layer
        self.groups: Sequence[ForkGroup] = ()
        self.keeps = False  # whether the keys and values are those that forks will read
        self._heads, self._kv_heads, self._size = module.num_heads, module.num_kv_heads, module.head_size
        self._scale = float(module.impl.scale)
        self._window = module.sliding_window
        self._cap = float(getattr(module.impl, "logits_soft_cap", None) or 0)

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
        query = query.view(len(query), self._kv_heads, -1, self._size)
        key, value = (x.view(len(x), self._kv_heads, self._size) for x in (key, value))
        out = torch.empty_like(query)
        for group in self.groups:
            rows = group.rows
            if self.keeps:
                group.prompt.keys_values.append((key[rows], value[rows]))
            out[rows] = self._of_group(query[rows], key[rows], value[rows], group)
        return out.view(len(out), -1)

    def _of_group(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: ForkGroup
    ) -> torch.Tensor:
        """`query` is [fork * node, kv head, query head, size]."""
        prompt, begin = group.prompt, group.begin
        nodes, kv, size = prompt.nodes - begin, self._kv_heads, self._size
        forks, per_kv = len(query) // nodes, query.shape[2]
        # [fork, kv head, node * query head, size] over [fork, kv head, node, size]
        of_fork = query.view(forks, nodes, kv, per_kv, size).transpose(1, 2).reshape(forks, kv, -1, size)
        own_key, own_value = (x.view(forks, nodes, kv, size).transpose(1, 2) for x in (key, value))
        own, own_sum = self._attend(of_fork, own_key, own_value, self._mask(group, of_fork, 1, own=True))
        if begin == 0:
            return own.view(forks, kv, nodes, per_kv, size).transpose(1, 2).reshape(query.shape)
        # [1, kv head, fork * node * query head, size] over [1, kv head, begin, size]
        shared_key, shared_value = (
            x[:begin].transpose(0, 1).unsqueeze(0) for x in prompt.keys_values[self.layer]
        )
        of_all = of_fork.transpose(0, 1).reshape(1, kv, -1, size)
        shared, shared_sum = self._attend(
            of_all, shared_key, shared_value, self._mask(group, of_fork, forks, own=False)
        )
        own = own.transpose(0, 1).reshape(shared.shape)
        own_sum = own_sum.transpose(0, 1).reshape(shared_sum.shape)
        share = torch.sigmoid(own_sum - shared_sum).unsqueeze(-1)
        merged = torch.lerp(shared.float(), own.float(), share).to(query.dtype)
        return merged.view(kv, forks * nodes, per_kv, size).transpose(0, 1)

    def _mask(self, group: ForkGroup, query: torch.Tensor, forks: int, own: bool) -> Mask:
        """What a group sees of its own keys, or of the prompt's keys before them, for so many forks."""
        if (self._window, own) in group.masks:
            return group.masks[self._window, own]
        prompt, begin = group.prompt, group.begin
        sees = prompt.sees[begin:]
        if self._window is not None:
            sees = sees & (prompt.positions[begin:, None] - prompt.positions < self._window)
        sees = sees[:, begin:] if own else sees[:, :begin]
        mask = Mask(None, None, False)
        if not bool(sees.all()):
            per_kv = query.shape[2] // len(sees)
            hides = ~sees.repeat_interleave(per_kv, 0).repeat(forks, 1)
            bias = query.new_zeros(hides.shape).masked_fill_(hides, -torch.inf)
            mask = Mask(hides, bias, bool(hides.all(1).any()))
        group.masks[self._window, own] = mask
        return mask

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Mask
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention, and the log of each row's sum of exponentials; a row may see nothing of this part."""
        if query.device.type == "cpu" and not self._cap and not mask.blind:
            found: tuple[torch.Tensor, torch.Tensor] = (
                torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    query, key, value, attn_mask=mask.bias, scale=self._scale
                )
            )
            return found
        scores = query.float() @ key.float().transpose(-1, -2) * self._scale
        if self._cap:
            scores = torch.tanh(scores / self._cap) * self._cap
        if mask.hides is not None:
            scores = scores.masked_fill(mask.hides, -torch.inf)
        total = torch.logsumexp(scores, -1)
        weights = torch.exp(scores - total.clamp_min(torch.finfo(total.dtype).min).unsqueeze(-1))
        return (weights @ value.float()).to(query.dtype), total
