"""A tiny model with random weights for each family other than Llama, made without torch.

They share tiny-llama's size and tokenizer, and lie beside it in vsteer's home.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsteer import models
from vsteer.families import FAMILIES, Family
from vsteer.models.tiny_llama import CONFIG, SEED, write_json, write_tokenizer

LAYERS = 6
WINDOW = 64
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Tiny:
    """How a family's tiny model is another than tiny-llama.

    Windows are shorter than the tests' prompts, so that what lies outside of a window matters.
    """

    config: Mapping[str, Any]
    # Gemma's norms multiply by 1 + weight, stand behind the attention and around the MLP too, and its
    # embedding is multiplied by the root of the width.
    gemma_norms: bool = False
    query_key_norms: bool = False
    attention_bias: bool = False


GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 32,
    "sliding_window": WINDOW,
    # the embedding is the output layer too
    "tie_word_embeddings": True,
}
TINY = {
    "Mistral": Tiny({"sliding_window": WINDOW}),
    "Qwen2": Tiny({"use_sliding_window": False}, attention_bias=True),
    "Qwen3": Tiny({"use_sliding_window": False}, query_key_norms=True),
    "Gemma2": Tiny(
        {
            **GEMMA,
            "layer_types": [SLIDING, FULL] * 3,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        gemma_norms=True,
    ),
    "Gemma3": Tiny(
        {
            "model_type": "gemma3_text",
            **GEMMA,
            "layer_types": [SLIDING] * 5 + [FULL],
            "rope_parameters": {
                SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
                FULL: {"rope_type": "default", "rope_theta": 1000000.0},
            },
        },
        gemma_norms=True,
        query_key_norms=True,
    ),
}


def tiny_model(family: Family) -> str:
    return f"tiny-{family.name.lower()}"


def folder_of(name: str) -> str:
    """The folder of a named model of vsteer's, or of a family's tiny model, which is made on first use."""
    family = next((one for one in FAMILIES if tiny_model(one) == name), None)
    if family is None or name in models.NAMED:
        return models.resolve(name).model
    tiny = models.NamedModel(
        name, "for tests", "Apache-2.0", size_mib=5, recipe=1, make=partial(make, family)
    )
    return str(models.ensure(tiny))


def make(family: Family, folder: Path) -> None:
    from safetensors.numpy import save_file

    vocab_size = write_tokenizer(folder)
    named = {"architectures": [family.architecture], "model_type": family.name.lower()}
    config = {**CONFIG, **named, **TINY[family.name].config, "vocab_size": vocab_size}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0})
    weights = dict(random_weights(family, config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def random_weights(family: Family, config: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    random = np.random.Generator(np.random.PCG64([SEED, *family.name.lower().encode()]))
    hidden, mlp, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    tiny = TINY[family.name]
    gemma = tiny.gemma_norms

    def normal(*shape: int, std: float = 0.1) -> NDArray[np.float32]:
        return (std * random.standard_normal(shape)).astype(np.float32)

    def norm(size: int) -> NDArray[np.float32]:
        # Gemma's norms multiply by 1 + weight
        return normal(size) if gemma else 1 + normal(size)

    # Gemma's embedding is multiplied by the root of the width, and gives the logits too: see tiny_llama.py
    yield "model.embed_tokens.weight", normal(config["vocab_size"], hidden, std=0.1 if gemma else 1.0)
    yield "model.norm.weight", norm(hidden)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", normal(config["vocab_size"], hidden, std=0.2)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        for name, size in (("q_proj", heads), ("k_proj", keys), ("v_proj", keys)):
            yield f"{block}.self_attn.{name}.weight", normal(size, hidden)
            if tiny.attention_bias:
                yield f"{block}.self_attn.{name}.bias", normal(size)
        yield f"{block}.self_attn.o_proj.weight", normal(hidden, heads)
        if tiny.query_key_norms:
            yield f"{block}.self_attn.q_norm.weight", norm(head)
            yield f"{block}.self_attn.k_norm.weight", norm(head)
        yield f"{block}.mlp.gate_proj.weight", normal(mlp, hidden)
        yield f"{block}.mlp.up_proj.weight", normal(mlp, hidden)
        yield f"{block}.mlp.down_proj.weight", normal(hidden, mlp)
        yield f"{block}.input_layernorm.weight", norm(hidden)
        yield f"{block}.post_attention_layernorm.weight", norm(hidden)
        if gemma:
            yield f"{block}.pre_feedforward_layernorm.weight", norm(hidden)
            yield f"{block}.post_feedforward_layernorm.weight", norm(hidden)
