"""A tiny model with random weights for each family other than Llama, made without torch.

They share tiny-llama's size and tokenizer, and lie beside it in vsteer's home.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
MLP: Any = CONFIG["intermediate_size"]
EXPERTS, EXPERTS_A_TOKEN = 4, 2
# vLLM's kernel for a CPU takes multiples of 32 on each rank
GPT_OSS_WIDTH = 128
SLIDING, FULL = "sliding_attention", "full_attention"


Array = NDArray[np.float32]
Normal = Callable[..., Array]


def _mlp(normal: Normal, hidden: int, mlp: int) -> Iterator[tuple[str, Array]]:
    yield "mlp.gate_proj.weight", normal(mlp, hidden)
    yield "mlp.up_proj.weight", normal(mlp, hidden)
    yield "mlp.down_proj.weight", normal(hidden, mlp)


def _fused_mlp(normal: Normal, hidden: int, mlp: int) -> Iterator[tuple[str, Array]]:
    yield "mlp.gate_up_proj.weight", normal(2 * mlp, hidden)
    yield "mlp.down_proj.weight", normal(hidden, mlp)


def _experts(
    normal: Normal, hidden: int, mlp: int, module: str, gate: str, up: str, down: str
) -> Iterator[tuple[str, Array]]:
    """Each token goes through EXPERTS_A_TOKEN of EXPERTS, of half the width."""
    yield f"{module}.gate.weight", normal(EXPERTS, hidden)
    for expert in range(EXPERTS):
        yield f"{module}.experts.{expert}.{gate}.weight", normal(mlp // 2, hidden)
        yield f"{module}.experts.{expert}.{up}.weight", normal(mlp // 2, hidden)
        yield f"{module}.experts.{expert}.{down}.weight", normal(hidden, mlp // 2)


def _gpt_oss_experts(normal: Normal, hidden: int, mlp: int) -> Iterator[tuple[str, Array]]:
    """All experts in one tensor, transposed, gate and up in turn, and with biases."""
    width = GPT_OSS_WIDTH
    yield "mlp.router.weight", normal(EXPERTS, hidden)
    yield "mlp.router.bias", normal(EXPERTS)
    yield "mlp.experts.gate_up_proj", normal(EXPERTS, hidden, 2 * width)
    yield "mlp.experts.gate_up_proj_bias", normal(EXPERTS, 2 * width)
    yield "mlp.experts.down_proj", normal(EXPERTS, width, hidden)
    yield "mlp.experts.down_proj_bias", normal(EXPERTS, hidden)


@dataclass(frozen=True)
class Tiny:
    """How a family's tiny model is another than tiny-llama.

    Windows are shorter than the tests' prompts, so that what lies outside of a window matters.
    """

    config: Mapping[str, Any]
    # Gemma's norms multiply by 1 + weight, and its embedding is multiplied by the root of the width.
    gemma_norms: bool = False
    # beside those in front of attention and MLP
    norms: tuple[str, ...] = ()
    query_key_norms: bool = False
    attention_bias: bool = False
    # the output's too
    output_bias: bool = False
    sinks: bool = False
    fused_attention: bool = False
    mlp: Callable[[Normal, int, int], Iterator[tuple[str, Array]]] = _mlp


GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 32,
    "sliding_window": WINDOW,
    # the embedding is the output layer too
    "tie_word_embeddings": True,
}
GEMMA_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
TINY = {
    "Mistral": Tiny({"sliding_window": WINDOW}),
    "Qwen2": Tiny({"use_sliding_window": False}, attention_bias=True),
    "Qwen3": Tiny({"use_sliding_window": False}, query_key_norms=True),
    "Qwen3Moe": Tiny(
        {
            "use_sliding_window": False,
            "num_experts": EXPERTS,
            "num_experts_per_tok": EXPERTS_A_TOKEN,
            "moe_intermediate_size": MLP // 2,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        query_key_norms=True,
        mlp=partial(_experts, module="mlp", gate="gate_proj", up="up_proj", down="down_proj"),
    ),
    "Mixtral": Tiny(
        {
            "sliding_window": None,
            "num_local_experts": EXPERTS,
            "num_experts_per_tok": EXPERTS_A_TOKEN,
            "intermediate_size": MLP // 2,
        },
        mlp=partial(_experts, module="block_sparse_moe", gate="w1", up="w3", down="w2"),
    ),
    # as Phi-4-mini: a part of each head is rotated
    "Phi3": Tiny(
        {
            "sliding_window": None,
            "original_max_position_embeddings": CONFIG["max_position_embeddings"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
            },
        },
        fused_attention=True,
        mlp=_fused_mlp,
    ),
    "Glm4": Tiny(
        {
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
        norms=("post_self_attn_layernorm", "post_mlp_layernorm"),
        attention_bias=True,
        mlp=_fused_mlp,
    ),
    "Granite": Tiny(
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.6,
            "logits_scaling": 0.5,
        }
    ),
    "GptOss": Tiny(
        {
            "attention_bias": True,
            "layer_types": [SLIDING, FULL] * 3,
            "sliding_window": WINDOW,
            "num_local_experts": EXPERTS,
            "num_experts_per_tok": EXPERTS_A_TOKEN,
            "intermediate_size": GPT_OSS_WIDTH,
            "swiglu_limit": 7.0,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 512,
            },
        },
        attention_bias=True,
        output_bias=True,
        sinks=True,
        mlp=_gpt_oss_experts,
    ),
    "Gemma2": Tiny(
        {
            **GEMMA,
            "layer_types": [SLIDING, FULL] * 3,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        gemma_norms=True,
        norms=GEMMA_NORMS,
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
        norms=GEMMA_NORMS,
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
    named = {"architectures": [family.architecture], "model_type": family.module}
    config = {**CONFIG, **named, **TINY[family.name].config, "vocab_size": vocab_size}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0})
    weights = dict(random_weights(family, config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def random_weights(family: Family, config: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    random = np.random.Generator(np.random.PCG64([SEED, *family.name.lower().encode()]))
    hidden, head = config["hidden_size"], config["head_dim"]
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
        if tiny.fused_attention:
            yield f"{block}.self_attn.qkv_proj.weight", normal(heads + 2 * keys, hidden)
        else:
            for name, size in (("q_proj", heads), ("k_proj", keys), ("v_proj", keys)):
                yield f"{block}.self_attn.{name}.weight", normal(size, hidden)
                if tiny.attention_bias:
                    yield f"{block}.self_attn.{name}.bias", normal(size)
        yield f"{block}.self_attn.o_proj.weight", normal(hidden, heads)
        if tiny.output_bias:
            yield f"{block}.self_attn.o_proj.bias", normal(hidden)
        if tiny.sinks:
            # about as much as a key among some tens
            yield f"{block}.self_attn.sinks", 3 + normal(config["num_attention_heads"], std=1.0)
        if tiny.query_key_norms:
            yield f"{block}.self_attn.q_norm.weight", norm(head)
            yield f"{block}.self_attn.k_norm.weight", norm(head)
        for name, weight in tiny.mlp(normal, hidden, MLP):
            yield f"{block}.{name}", weight
        for name in ("input_layernorm", "post_attention_layernorm", *tiny.norms):
            yield f"{block}.{name}.weight", norm(hidden)
