"""Quantised checkpoints: tiny-llama in 8-bit weights and activations (compressed-tensors) is steered as well.

The reference holds the same weights, dequantised. Activations are rounded in the one and not in the
other, so a row can't agree to 1e-4. It must be as near to its own steering as unsteered rows are to theirs,
and far from none.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.engine.proof import parity
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.engine.table import Capacity
from vsteer.models import resolve
from vsteer.protocol import Result

SCHEME = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def write_model(folder: Path, tensors: dict[str, NDArray[np.generic]], quantised: bool) -> Path:
    source = Path(resolve("tiny-llama").model)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if quantised:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": SCHEME}))
    return folder


@pytest.mark.engine
@pytest.mark.slow
def test_a_quantised_checkpoint_is_steered(tmp_path: Path) -> None:
    quantised: dict[str, NDArray[np.generic]] = {}
    plain: dict[str, NDArray[np.generic]] = {}
    for file in Path(resolve("tiny-llama").model).glob("*.safetensors"):
        for name, weight in load_file(file).items():
            if not name.endswith("_proj.weight"):
                quantised[name] = plain[name] = weight
                continue
            scale = np.abs(weight).max(axis=1, keepdims=True) / 127
            rounded = np.round(weight / scale).astype(np.int8)
            quantised[name], quantised[f"{name}_scale"] = rounded, scale.astype(np.float32)
            plain[name] = rounded.astype(np.float32) * scale.astype(np.float32)
    reference = ReferenceEngine(str(write_model(tmp_path / "plain", plain, quantised=False)))
    engine = VllmEngine(
        str(write_model(tmp_path / "quantised", quantised, quantised=True)),
        dtype="bfloat16",
        options=EngineOptions(max_model_len=256, kv_cache_gib=0.25, enforce_eager=True),
        capacity=Capacity(terms=3),
    )
    try:
        vectors = parity.make_vectors(reference, relative=2.0)
        requests = {r.id: r for r in parity.make_requests(60, engine.info.layers, engine.info.vocab_size)}
        steerings = [r.steering for r in requests.values() if r.steering]
        engine.load(vectors, steerings)
        reference.load(vectors, steerings)
        noise, own, effect = [], [], []
        for result in engine.run(requests.values()):
            request = requests[result.id]
            gap = distance(result, reference.score(request, result.token_ids))
            if request.steering is None or not request.steering.acting_terms:
                noise.append(gap)
                continue
            assert result.steered_tokens
            unsteered = dataclasses.replace(request, steering=None)
            own.append(gap)
            effect.append(distance(result, reference.score(unsteered, result.token_ids)))
    finally:
        engine.close()
    clear = sum(e > 5 * gap for e, gap in zip(effect, own, strict=True))
    print(
        f"rounding alone {max(noise):.2f}; steered rows from their own steering {max(own):.2f} at most, "
        f"from none {np.median(effect):.1f} in the median; {clear} of {len(own)} tell the two apart"
    )
    assert (len(noise), len(own)) == (6, 54)
    # steering adds no error to what rounding alone makes of unsteered rows
    assert max(own) < 1.5 * max(noise)
    # a small multiplier on two early tokens can drown in the rounding, so not every row can tell
    assert clear >= 50


def distance(result: Result, scores: torch.Tensor) -> float:
    return max(
        abs(value - float(scores[position, token]))
        for position, of_token in enumerate(result.logprobs)
        for token, value in of_token.items()
    )
