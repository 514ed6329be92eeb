"""A tiny model with random weights for each family other than Llama, for tests; made without torch.

They share tiny-llama's size and tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsteer.families import Family
from vsteer.models.tiny_llama import CONFIG, SEED, write_json, write_tokenizer

LAYERS = 6


def make(family: Family, folder: Path) -> None:
    from safetensors.numpy import save_file

    vocab_size = write_tokenizer(folder)
    named = {"architectures": [family.architecture], "model_type": family.name.lower()}
    config = {**CONFIG, **named, **family.tiny, "vocab_size": vocab_size}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0})
    weights = dict(random_weights(family, config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def random_weights(family: Family, config: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    random = np.random.Generator(np.random.PCG64([SEED, *family.name.lower().encode()]))
    hidden, mlp, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    gemma = family.gemma_norms

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
            if family.attention_bias:
                yield f"{block}.self_attn.{name}.bias", normal(size)
        yield f"{block}.self_attn.o_proj.weight", normal(hidden, heads)
        if family.query_key_norms:
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
