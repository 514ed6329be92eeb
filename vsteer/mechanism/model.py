"""A model whose queries, keys, values and MLPs read the stream apart, and whose heads write to it apart.

Weights, masks and rotary angles are those of transformers. The blocks are written out here: transformers
gives queries, keys and values one input, and computes norms and softmax in float32 even within float64.
What a pass does differently at some place is an `Actor`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vsteer.engine.support import check_family
from vsteer.errors import UnsupportedError
from vsteer.families import BY_ARCHITECTURE
from vsteer.models import resolve
from vsteer.models.hugging_face import load_config, load_model, load_tokenizer


class Norm:
    """A root-mean-square norm, in at least float32."""

    def __init__(self, module: Any, plus_one: bool) -> None:
        self.eps: float = getattr(module, "variance_epsilon", None) or module.eps
        # Gemma's norms multiply by 1 + weight
        self.weight: Tensor = module.weight + 1 if plus_one else module.weight

    def scale(self, x: Tensor) -> Tensor:
        """What each position is multiplied by, before the weight."""
        return torch.rsqrt(wide(x).pow(2).mean(-1, keepdim=True) + self.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return (wide(x) * self.scale(x) * self.weight).to(x.dtype)


@dataclass(frozen=True)
class Rails:
    """What transformers makes of a text's length before the first block, for each layer."""

    masks: Sequence[Tensor]  # added to attention scores: [1, 1, position, position]
    angles: Sequence[tuple[Tensor, Tensor]]  # cosines and sines: [1, position, head's width]


class Actor:
    """What a pass does at each place. This one changes nothing.

    Shapes: stream [row, position, width]; values [row, key-value head, position, head's width]; weights
    [row, head, position, position]; heads [row, position, head, head's width].
    """

    def read(self, layer: int, reader: str, stream: Tensor, norm: Norm) -> Tensor:
        """What a reader takes in: the stream behind the norm in front of it."""
        return norm(stream)

    def values(self, layer: int, values: Tensor) -> Tensor:
        return values

    def weights(self, layer: int, weights: Tensor) -> Tensor:
        return weights

    def heads(self, layer: int, heads: Tensor) -> Tensor:
        """What the heads write, before it is widened to the stream by `Block.write`."""
        return heads

    def mlp(self, layer: int, output: Tensor) -> Tensor:
        return output


# The keys and values of the tokens before those of a pass, by layer.
Past = dict[int, tuple[Tensor, Tensor]]


class Block:
    """One decoder block."""

    def __init__(self, layer: int, module: Any, gemma: bool) -> None:
        self.layer = layer
        self.attention = attention = module.self_attn
        for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            if type(part) is not nn.Linear:
                raise UnsupportedError(
                    "the model's weights are quantised or adapted, and mechanism needs them as they are",
                    f"give the plain checkpoint; {type(part).__name__} was found in its attention",
                )
        if gemma and attention.o_proj.bias is not None:
            raise UnsupportedError(
                "the model adds a bias behind its heads and norms the sum, so no head owns its share",
                "mechanism works with Gemma models as Google made them, without attention_bias",
            )
        self.before_attention = Norm(module.input_layernorm, gemma)
        in_front = module.pre_feedforward_layernorm if gemma else module.post_attention_layernorm
        self.before_mlp = Norm(in_front, gemma)
        self.behind_attention = Norm(module.post_attention_layernorm, gemma) if gemma else None
        self.behind_mlp = Norm(module.post_feedforward_layernorm, gemma) if gemma else None
        normed = hasattr(attention, "q_norm")
        self.query_norm = Norm(attention.q_norm, gemma) if normed else None
        self.key_norm = Norm(attention.k_norm, gemma) if normed else None
        self.mlp = module.mlp
        self.width: int = attention.head_dim
        self.groups: int = attention.num_key_value_groups
        self.softcap: float | None = getattr(attention, "attn_logit_softcapping", None)

    def __call__(self, stream: Tensor, rails: Rails, actor: Actor, past: Past | None = None) -> Tensor:
        heads = actor.heads(self.layer, self.heads(stream, rails, actor, past))
        stream = stream + self.write(heads)
        output = self.mlp(actor.read(self.layer, "mlp", stream, self.before_mlp))
        if self.behind_mlp:
            output = self.behind_mlp(output)
        return stream + actor.mlp(self.layer, output)

    def heads(self, stream: Tensor, rails: Rails, actor: Actor, past: Past | None) -> Tensor:
        of, layer = self.attention, self.layer
        query, key, value = (
            project(actor.read(layer, reader, stream, self.before_attention)).unflatten(-1, (-1, self.width))
            for reader, project in (("query", of.q_proj), ("key", of.k_proj), ("value", of.v_proj))
        )
        if self.query_norm and self.key_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        before = past[layer][0].shape[2] if past and layer in past else 0
        here = slice(before, before + stream.shape[1])
        cosines, sines = (each[:, None, here] for each in rails.angles[layer])
        query, key = (each * cosines + _half_turned(each) * sines for each in (query, key))
        value = actor.values(layer, value)
        if past is not None:
            if before:
                key, value = (torch.cat(pair, dim=2) for pair in zip(past[layer], (key, value), strict=True))
            past[layer] = (key, value)
        scores = query @ key.repeat_interleave(self.groups, 1).transpose(2, 3) * of.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores + rails.masks[layer][..., here, : key.shape[2]]
        weights = actor.weights(layer, torch.softmax(wide(scores), dim=-1).to(query.dtype))
        written = (weights @ value.repeat_interleave(self.groups, 1)).transpose(1, 2)
        if self.behind_attention:
            # Gemma norms the sum of the heads: each position's scale is put on what each head wrote.
            scale = self.behind_attention.scale(of.o_proj(written.flatten(-2)))
            written = (wide(written) * scale[..., None]).to(written.dtype)
        return written

    def write(self, heads: Tensor) -> Tensor:
        """What all heads together add to the stream."""
        written: Tensor = self.attention.o_proj(heads.flatten(-2))
        if self.behind_attention:
            written = (written * self.behind_attention.weight).to(heads.dtype)
        return written

    def write_apart(self, heads: Tensor) -> Tensor:
        """What each head adds to the stream, without a bias: [row, head, position, width]."""
        weight = self.attention.o_proj.weight.unflatten(1, (-1, self.width))
        apart = torch.einsum("bthk,dhk->bhtd", heads, weight)
        if self.behind_attention:
            apart = (apart * self.behind_attention.weight).to(heads.dtype)
        return apart


class Model:
    def __init__(self, whole: Any, tokenizer: Any) -> None:
        """`whole` is transformers' model, with eager attention."""
        config = whole.config
        _check_written_out(config.architectures or ())
        self.whole = whole.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.inner = whole.model
        gemma = "Gemma" in type(whole).__name__
        self.blocks = [Block(layer, module, gemma) for layer, module in enumerate(self.inner.layers)]
        self.final_norm = Norm(self.inner.norm, gemma)
        self.layers = len(self.blocks)
        self.heads: int = config.num_attention_heads
        self.width: int = config.hidden_size
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)

    @classmethod
    def load(
        cls, name: str, revision: str | None = None, device: str = "cpu", dtype: str = "float32"
    ) -> Model:
        source = resolve(name, revision)
        _check_written_out(load_config(*source).architectures or ())
        options = {"dtype": getattr(torch, dtype), "attn_implementation": "eager"}
        whole = load_model(*source, device=device, **options)
        return cls(whole, load_tokenizer(*source))

    def embed(self, token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Rails]:
        """The stream before the first block, and what goes beside it."""
        noted: list[dict[str, Any]] = []
        layers = self.inner.layers
        self.inner.layers = nn.ModuleList(_Notes(noted) for _ in self.blocks)
        try:
            ids = torch.tensor(token_ids, device=self.whole.device)
            with torch.no_grad():
                self.inner(input_ids=ids, use_cache=False)
        finally:
            self.inner.layers = layers
        rails = Rails(
            [each["attention_mask"] for each in noted], [each["position_embeddings"] for each in noted]
        )
        return noted[0]["stream"], rails

    def run(
        self,
        stream: Tensor,
        rails: Rails,
        actor: Actor,
        first: int = 0,
        end: int | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """The stream behind the blocks from `first` up to `end`."""
        for block in self.blocks[first:end]:
            stream = block(stream, rails, actor, past)
        return stream

    def logits(self, normed: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Logits behind the final norm: of all tokens, or of one token for each position, [.., position]."""
        head = self.whole.lm_head
        if tokens is None:
            found: Tensor = head(normed)
        else:
            found = (normed * head.weight[tokens]).sum(-1)
        found = wide(found)
        return found if self.softcap is None else torch.tanh(found / self.softcap) * self.softcap

    def read_out(self, stream: Tensor, actor: Actor) -> Tensor:
        """The final norm's output, which the unembedding reads."""
        return actor.read(self.layers, "unembedding", stream, self.final_norm)


def _check_written_out(architectures: Sequence[str]) -> None:
    """Refuse a family whose blocks are others than those above, before its weights are read."""
    check_family(architectures)
    if not any(BY_ARCHITECTURE[name].mechanism for name in architectures if name in BY_ARCHITECTURE):
        known = ", ".join(family.name for family in BY_ARCHITECTURE.values() if family.mechanism)
        raise UnsupportedError(
            f"mechanism does not work with the model family {', '.join(architectures)[:100]}",
            f"it writes out a model's blocks, and does so for {known}",
        )


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


class _Notes(nn.Module):
    """Stands in a block's place and notes what it is called with."""

    def __init__(self, noted: list[dict[str, Any]]) -> None:
        super().__init__()
        self.noted = noted

    def forward(self, stream: Tensor, **beside: Any) -> Tensor:
        self.noted.append({"stream": stream, **beside})
        return stream
