"""LoRA adapters with random weights, in the files that peft writes, made without peft."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

# a LoRA's B and A, by module
Parts = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def make_adapter(
    folder: Path,
    base: Path,
    *,
    layers: Sequence[int] = (1, 3),
    targets: Sequence[str] = TARGETS,
    rank: int = 4,
    size: float = 0.2,
    seed: int = 0,
    tensors: dict[str, NDArray[np.float32]] | None = None,
    **settings: Any,
) -> Parts:
    """An adapter of `base`, whose weights are in one file. `tensors` stand beside its own."""
    random = np.random.default_rng(seed)
    parts: Parts = {}
    with safe_open(base / "model.safetensors", "np") as model:
        for module in (f"model.layers.{layer}.{target}" for layer in layers for target in targets):
            rows, columns = model.get_slice(f"{module}.weight").get_shape()
            b, a = random.standard_normal((rows, rank)), random.standard_normal((rank, columns))
            parts[module] = ((size * b).astype(np.float32), (size * a).astype(np.float32))
    folder.mkdir(parents=True, exist_ok=True)
    # as peft 0.21 writes it, what is null or empty left out
    config = {
        "base_model_name_or_path": str(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": [target.rpartition(".")[2] for target in targets],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    named = {
        f"base_model.model.{module}.lora_{part}.weight": tensor
        for module, of_module in parts.items()
        for part, tensor in zip("BA", of_module, strict=True)
    }
    save_file(named | (tensors or {}), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return parts
