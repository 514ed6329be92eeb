"""Steering value vectors: what a head writes when it attends to the steering alone, read as tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from vsteer.mechanism.model import Model


def value_vectors(model: Model, layer: int, direction: Tensor) -> Tensor:
    """Each head's at a layer: [head, width].

    The vector goes through the weight of the norm in front of the attention, without a division by the
    stream's length, then through the head's W_V and W_O, and in Gemma through the weight of the norm behind.
    """
    block = model.blocks[layer]
    attention = block.attention
    seen = direction.to(attention.v_proj.weight) * block.before_attention.weight
    values = (seen @ attention.v_proj.weight.T).unflatten(-1, (-1, block.width))
    heads = values.repeat_interleave(block.groups, 0)
    return block.write_apart(heads[None, None])[0, :, 0]


def top_tokens(model: Model, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What vectors raise most, read through the final norm and the unembedding: logits, and the tokens."""
    with torch.no_grad():
        logits, tokens = model.logits(model.final_norm(vectors)).topk(count, dim=-1)
    return logits, tokens
