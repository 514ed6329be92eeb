"""Will it fit: the weights, and how many tokens' keys and values the memory holds beside them. An estimate.

It is made from the model's files alone, so that a plan has it without loading anything. vLLM's own figure,
which also counts activations and CUDA graphs, is somewhat less.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vsteer.engine.forks import KEPT_BYTES
from vsteer.engine.memory_share import memory_share
from vsteer.engine.options import KV_SPACE, EngineOptions
from vsteer.host.machine import gpus
from vsteer.models.weights import parameters, read_config
from vsteer.plan.plan import Plan
from vsteer.plan.ways import why_not

CPU = "CPU"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}


@dataclass(frozen=True)
class Memory:
    """What each device has that holds a part of the model."""

    weights_bytes: int
    kv_bytes: int | None  # left for keys and values; None where the device isn't known
    kv_bytes_per_token: int
    device: str
    forks_bytes: int  # what the forked pass keeps of unsteered prompts, at most; 0 without it

    @property
    def kv_tokens(self) -> int | None:
        return None if self.kv_bytes is None else max(0, self.kv_bytes) // self.kv_bytes_per_token


def memory_of(plan: Plan) -> Memory | None:
    """None while the model isn't at hand, or where its files do not say enough."""
    facts = plan.facts
    if facts.like is None or plan.pending:
        return None
    config = read_config(facts.like)
    spec = plan.grid.engine_for(plan.grid.model[plan.model])
    ranks = spec.ranks
    count = sum(map(parameters, facts.like.glob("*.safetensors")))
    per_token = kv_bytes_per_token(config, facts.kv_cache_dtype, facts.dtype)
    if not count or not per_token:
        return None
    stored = sum(path.stat().st_size for path in facts.like.glob("*.safetensors"))
    # A quantised checkpoint is held as it is stored.
    weights = stored if facts.quantization or "quantization_config" in config else count * BYTES[facts.dtype]
    weights //= ranks
    forks = 0 if why_not(plan) else KEPT_BYTES
    device, room = _room(spec, weights + forks)
    if device == CPU and facts.dtype != "float32":
        # the unembedding once more, in float32
        weights += 4 * _count(config, "vocab_size") * _count(config, "hidden_size") // ranks
    return Memory(weights, room, max(1, per_token // ranks), device, forks)


def kv_bytes_per_token(config: Mapping[str, Any], kv_dtype: str, dtype: str) -> int:
    """Keys and values of all layers; 0 where the configuration doesn't say."""
    heads = _count(config, "num_key_value_heads") or _count(config, "num_attention_heads")
    size = _count(config, "head_dim") or _count(config, "hidden_size") // max(
        1, _count(config, "num_attention_heads")
    )
    width = BYTES.get(dtype if kv_dtype == "auto" else kv_dtype, 2)
    return 2 * _count(config, "num_hidden_layers") * heads * size * width


def _count(config: Mapping[str, Any], name: str) -> int:
    """0 where it isn't there, or isn't a number that a model could have."""
    value = config.get(name)
    return value if type(value) is int and 0 < value < 2**31 else 0


def _room(options: EngineOptions, taken: int) -> tuple[str, int | None]:
    """The device, and what it has for keys and values."""
    wanted = int(options.kv_cache_gib * 2**30) if options.kv_cache_gib else None
    found, _ = gpus()
    if found and (size := found[0].total):
        share = int(size * (options.gpu_memory_utilization or memory_share()))
        return f"a GPU of {size / 2**30:.0f} GiB", wanted or share - taken
    if wanted is None and (space := os.environ.get(KV_SPACE)):
        wanted = int(float(space) * 2**30)
    return CPU, wanted
