"""Attention of forks: over the unsteered keys and values before a fork's span, and over its own behind it.

There are two ways. `PagedBatch` is for a CPU and for spans of several tokens: vLLM's own kernel, over a cache
of the pass's own, in which forks of a prompt have the full blocks before their spans in common. `PartsBatch`
is for every device, and for answers side by side, for which the kernel has no mask: both parts come with the
logs of their sums of exponentials, by which they are put together as one softmax, and the part before the
span is one matrix product for all forks of a prompt that begin at the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vsteer.engine.forks import ForkBlock
from vsteer.patches.forked_attention import PagedKernel

# From so many tokens a fork on, the paged kernel is the faster.
PAGED_FROM = 2


@dataclass(frozen=True, eq=False)
class Mask:
    """What rows of queries must not see of a part's keys; None where they see all."""

    hides: torch.Tensor | None
    bias: torch.Tensor | None  # the same as what is added to scores
    blind: bool  # whether a row sees nothing of the part


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
    # of the forks that begin at a node, by it and by the window, which layers have in common
    masks: dict[tuple[int, int | None], Mask] = field(default_factory=dict)

    @property
    def nodes(self) -> int:
        return len(self.block.tokens)

    @cached_property
    def branches(self) -> bool:
        """Whether answers stand side by side, so that a node does not see all nodes before it."""
        return not bool(self.block.sees[np.tril_indices(self.nodes)].all())


@dataclass(frozen=True, eq=False)
class OwnPart:
    """What one fork computes for itself; or an unsteered prompt, which begins at 0."""

    prompt: ForkPrompt
    begin: int

    @property
    def nodes(self) -> int:
        return self.prompt.nodes - self.begin


class LayerAttention:
    """What is to be known of one layer's attention."""

    def __init__(self, layer: int, module: Any) -> None:
        self.layer = layer
        self.heads, self.kv_heads, self.size = module.num_heads, module.num_kv_heads, module.head_size
        self.scale = float(module.impl.scale)
        self.window: int | None = module.sliding_window
        self.cap = float(getattr(module.impl, "logits_soft_cap", None) or 0)
        self.kernel = PagedKernel(module) if PagedKernel.serves(module) else None
        # for each head what its softmax counts beside its keys, without a value
        self.sinks: torch.Tensor | None = getattr(module.impl, "sinks", None)


class ForkBatch(Protocol):
    def grow(self, parts: int) -> None:
        """Let so many parts, the first ones, be under way."""

    def attend(
        self, of: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Over tokens of the parts under way; all are [token, head, size]."""
        ...


def batch_of(parts: Sequence[OwnPart], layers: Sequence[LayerAttention], keeps: bool) -> ForkBatch:
    """`keeps` says whether the keys and values are those that forks will read."""
    long = sum(part.nodes for part in parts) >= PAGED_FROM * len(parts)
    branches = any(prompt.branches for prompt in {part.prompt for part in parts})
    if long and not branches and all(of.kernel for of in layers):
        return PagedBatch(parts, keeps)
    return PartsBatch(parts, keeps)


class ForkAttention:
    """In place of one layer's attention. `batch` is what is computed now."""

    def __init__(self, of: LayerAttention) -> None:
        self.of = of
        self.batch: ForkBatch | None = None
        self.rows: torch.Tensor | None = None  # of which alone the layer's output is wanted

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any) -> torch.Tensor:
        of, tokens = self.of, len(query)
        assert self.batch is not None
        out = self.batch.attend(
            of,
            query.view(tokens, of.heads, of.size),
            key.view(tokens, of.kv_heads, of.size),
            value.view(tokens, of.kv_heads, of.size),
        )
        if self.rows is not None:
            out = out[self.rows]
        return out.reshape(len(out), -1)


def _keep(parts: Sequence[OwnPart], offsets: Sequence[int], key: torch.Tensor, value: torch.Tensor) -> None:
    """Leave keys and values with the prompts: copies, since the batch's are parts of larger ones."""
    for part, at in zip(parts, offsets, strict=False):
        own = slice(at, at + part.nodes)
        part.prompt.keys_values.append((key[own].clone(), value[own].clone()))


class PagedBatch:
    """Each part is a sequence to the kernel: blocks that its prompt's parts have in common, then its own."""

    def __init__(self, parts: Sequence[OwnPart], keeps: bool) -> None:
        size = PagedKernel.BLOCK
        self._parts, self._keeps = parts, keeps
        self._offsets = [0, *accumulate(part.nodes for part in parts)]
        begins, ends = (
            np.array(numbers) for numbers in ([p.begin for p in parts], [p.prompt.nodes for p in parts])
        )
        full = begins // size
        # the prompts, one after another: their tokens, and the blocks that are full before every span
        self._prompts = list(dict.fromkeys(part.prompt for part in parts))
        place = {prompt: n for n, prompt in enumerate(self._prompts)}
        of = np.array([place[part.prompt] for part in parts])
        shared = np.zeros(len(self._prompts), np.int64)
        np.maximum.at(shared, of, full)
        first_token = np.cumsum([0, *(prompt.nodes for prompt in self._prompts)])[:-1]
        first_block = np.cumsum([0, *shared])[:-1]
        own = -(-ends // size) - full
        own_block = np.cumsum([int(shared.sum()), *own])[:-1]
        self._blocks = int(shared.sum() + own.sum())
        columns = np.arange((-(-ends // size)).max())
        table = np.where(
            columns < full[:, None],
            first_block[of][:, None] + columns,
            own_block[:, None] + columns - full[:, None],
        )
        # behind a part's end stands no block of another
        table = np.where(columns < (full + own)[:, None], table, 0)

        def slots(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
            """For tokens of each part: the part, the token in its prompt, and its slot in the cache."""
            part = np.repeat(np.arange(len(counts)), counts)
            token = np.arange(len(part)) - np.repeat(np.cumsum(counts) - counts, counts) + starts[part]
            return part, token, table[part, token // size] * size + token % size

        _, _, self._own_slots = map(torch.from_numpy, slots(begins, ends - begins))
        # what is unsteered: the prompts' full blocks, then what lies between those and each part's begin
        prompt, token = np.repeat(np.arange(len(shared)), shared * size), _counted(shared * size)
        part, ragged, ragged_slots = slots(full * size, begins - full * size)
        self._sources = torch.from_numpy(
            np.concatenate([first_token[prompt] + token, first_token[of[part]] + ragged])
        )
        in_blocks = first_block[prompt] * size + token
        self._source_slots = torch.from_numpy(np.concatenate([in_blocks, ragged_slots]))
        self._sources_before = len(prompt) + np.cumsum([0, *(begins - full * size)])
        self._lengths = torch.from_numpy(ends.astype(np.int32))
        self._starts = torch.tensor(self._offsets, dtype=torch.int32)
        self._table = torch.from_numpy(table.astype(np.int32))
        self._cache: tuple[torch.Tensor, torch.Tensor] | None = None
        self._schedules: dict[int, torch.Tensor] = {}
        self._under_way = 0

    def grow(self, parts: int) -> None:
        self._under_way = parts
        self._schedules = {}

    def attend(
        self, of: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        kernel, count = of.kernel, self._under_way
        assert kernel is not None
        if self._cache is None:
            self._cache = kernel.cache(self._blocks, key)
        if self._keeps:
            _keep(self._parts, self._offsets, key, value)
        elif sources := int(self._sources_before[count]):
            keys, values = (
                torch.cat([prompt.keys_values[of.layer][n] for prompt in self._prompts]) for n in (0, 1)
            )
            chosen = self._sources[:sources]
            kernel.put(self._cache, keys[chosen], values[chosen], self._source_slots[:sources])
        kernel.put(self._cache, key, value, self._own_slots[: len(key)])
        starts, lengths = self._starts[: count + 1], self._lengths[:count]
        if kernel.window not in self._schedules:
            self._schedules[kernel.window] = kernel.schedule(query.dtype, starts, lengths)
        schedule = self._schedules[kernel.window]
        return kernel.attend(query, self._cache, starts, lengths, self._table[:count], schedule)


def _counted(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... up to each of the counts."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


@dataclass(frozen=True, eq=False)
class ForkGroup:
    """Parts of one prompt that begin at the same node."""

    prompt: ForkPrompt
    begin: int
    rows: torch.Tensor | slice  # of their tokens in the batch, [part * node]
    masks: dict[tuple[int, int | None], Mask] = field(default_factory=dict)  # of the prompt before them

    @classmethod
    def at(cls, prompt: ForkPrompt, begin: int, offsets: Sequence[int]) -> ForkGroup:
        nodes = prompt.nodes - begin
        if offsets[-1] - offsets[0] == nodes * (len(offsets) - 1):
            return cls(prompt, begin, slice(offsets[0], offsets[-1] + nodes))
        each = torch.arange(nodes, device=prompt.positions.device)
        rows = torch.tensor(offsets, device=each.device)[:, None] + each
        return cls(prompt, begin, rows.flatten())


class PartsBatch:
    def __init__(self, parts: Sequence[OwnPart], keeps: bool) -> None:
        self._parts, self._keeps = parts, keeps
        self._offsets = [0, *accumulate(part.nodes for part in parts)]
        self._groups: list[ForkGroup] = []

    def grow(self, parts: int) -> None:
        offsets: dict[tuple[ForkPrompt, int], list[int]] = {}
        for part, at in zip(self._parts[:parts], self._offsets, strict=False):
            offsets.setdefault((part.prompt, part.begin), []).append(at)
        self._groups = [ForkGroup.at(prompt, begin, found) for (prompt, begin), found in offsets.items()]

    def attend(
        self, of: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        if self._keeps:
            _keep(self._parts, self._offsets, key, value)
        query = query.view(len(query), of.kv_heads, -1, of.size)
        out = torch.empty_like(query)
        for group in self._groups:
            rows = group.rows
            out[rows] = _of_group(of, query[rows], key[rows], value[rows], group)
        return out


def _of_group(
    of: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: ForkGroup
) -> torch.Tensor:
    """`query` is [fork * node, kv head, query head, size]."""
    prompt, begin = group.prompt, group.begin
    nodes, kv, size = prompt.nodes - begin, of.kv_heads, of.size
    forks, per_kv = len(query) // nodes, query.shape[2]
    # [fork, kv head, node * query head, size] over [fork, kv head, node, size]
    of_fork = query.view(forks, nodes, kv, per_kv, size).transpose(1, 2).reshape(forks, kv, -1, size)
    own_key, own_value = (x.view(forks, nodes, kv, size).transpose(1, 2) for x in (key, value))
    if nodes == 1:
        # a token's attention to itself alone is its value
        own_sum = _scores(of, (of_fork.float() * own_key.float()).sum(-1))
        own = own_value.expand(of_fork.shape)
    else:
        own, own_sum = _attend(of, of_fork, own_key, own_value, _mask(of, group, of_fork, 1, own=True))
    if begin == 0:
        own = _beside_sinks(of, own, own_sum, nodes)
        return own.reshape(forks, kv, nodes, per_kv, size).transpose(1, 2).reshape(query.shape)
    # [1, kv head, fork * node * query head, size] over [1, kv head, begin, size]
    shared_key, shared_value = (x[:begin].transpose(0, 1).unsqueeze(0) for x in prompt.keys_values[of.layer])
    of_all = of_fork.transpose(0, 1).reshape(1, kv, -1, size)
    mask = _mask(of, group, of_fork, forks, own=False)
    shared, shared_sum = _attend(of, of_all, shared_key, shared_value, mask)
    own = own.transpose(0, 1).reshape(shared.shape)
    own_sum = own_sum.transpose(0, 1).reshape(shared_sum.shape)
    share = torch.sigmoid(own_sum - shared_sum).unsqueeze(-1)
    merged = torch.lerp(shared.float(), own.float(), share).to(query.dtype)
    merged = _beside_sinks(of, merged, torch.logaddexp(own_sum, shared_sum), forks * nodes)
    return merged.view(kv, forks * nodes, per_kv, size).transpose(0, 1)


def _beside_sinks(of: LayerAttention, out: torch.Tensor, total: torch.Tensor, nodes: int) -> torch.Tensor:
    """What heads give where sinks take a part of their softmax, [part, kv head, node * query head, size];
    `total` is the log of the sum of exponentials without them."""
    if of.sinks is None:
        return out
    # [1, kv head, node * query head]
    sinks = of.sinks.float().view(1, of.kv_heads, 1, -1).expand(1, -1, nodes, -1).flatten(2)
    return (out.float() * torch.sigmoid(total - sinks).unsqueeze(-1)).to(out.dtype)


def _mask(of: LayerAttention, group: ForkGroup, query: torch.Tensor, forks: int, own: bool) -> Mask:
    """What a group sees of its own keys, or of the prompt's keys before them, for so many forks."""
    prompt, begin = group.prompt, group.begin
    masks = prompt.masks if own else group.masks
    if (begin, of.window) in masks:
        return masks[begin, of.window]
    sees = prompt.sees[begin:]
    if of.window is not None:
        sees = sees & (prompt.positions[begin:, None] - prompt.positions < of.window)
    sees = sees[:, begin:] if own else sees[:, :begin]
    mask = Mask(None, None, False)
    if not bool(sees.all()):
        per_kv = query.shape[2] // len(sees)
        hides = ~sees.repeat_interleave(per_kv, 0).repeat(forks, 1)
        bias = query.new_zeros(hides.shape).masked_fill_(hides, -torch.inf)
        mask = Mask(hides, bias, bool(hides.all(1).any()))
    masks[begin, of.window] = mask
    return mask


def _attend(
    of: LayerAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Mask
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention, and the log of each row's sum of exponentials; a row may see nothing of this part."""
    if query.device.type == "cpu" and not of.cap and not mask.blind:
        found: tuple[torch.Tensor, torch.Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=mask.bias, scale=of.scale
        )
        return found
    scores = _scores(of, query.float() @ key.float().transpose(-1, -2))
    if mask.hides is not None:
        scores = scores.masked_fill(mask.hides, -torch.inf)
    total = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - total.clamp_min(torch.finfo(total.dtype).min).unsqueeze(-1))
    return (weights @ value.float()).to(query.dtype), total


def _scores(of: LayerAttention, products: torch.Tensor) -> torch.Tensor:
    scores = products * of.scale
    return torch.tanh(scores / of.cap) * of.cap if of.cap else scores
