"""Adapters: the merged weights by hand and by peft, which model they make, and what is not merged."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file

from tests.lora import make_adapter
from vsteer import models
from vsteer.errors import ModelError, UnsupportedError, VsteerError
from vsteer.models.adapters import Adapted
from vsteer.models.identity import model_sha256, weights_of


@pytest.fixture(scope="module")
def base() -> Path:
    return Path(models.resolve("tiny-llama").model)


@pytest.fixture(autouse=True)
def home(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VSTEER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def adapted(base: Path, adapter: Path) -> Adapted:
    return Adapted("the-model", base, weights_of(str(base), base), adapter)


# --- merged weights


@pytest.mark.parametrize(("rank", "rslora"), [(4, False), (9, True)])
def test_merged_weights_are_w_plus_scale_b_a(base: Path, tmp_path: Path, rank: int, rslora: bool) -> None:
    parts = make_adapter(tmp_path / "lora", base, rank=rank, lora_alpha=6, use_rslora=rslora)
    scale = 6 / (math.sqrt(rank) if rslora else rank)
    merged = adapted(base, tmp_path / "lora").merged()
    before, after = (load_arrays(folder / "model.safetensors") for folder in (base, merged))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        if name.removesuffix(".weight") not in parts:
            assert np.array_equal(after[name], weight), name
            continue
        b, a = (part.astype(np.float64) for part in parts[name.removesuffix(".weight")])
        expected = weight + scale * np.einsum("ok,ki->oi", b, a)
        assert np.abs(after[name] - expected).max() < 1e-6
        assert np.abs(after[name] - weight).max() > 0.1
    assert (merged / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert (merged / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_a_model_in_bfloat16_and_several_files_is_merged_in_float32(base: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(base, model)
    weights = {name: one.bfloat16() for name, one in load_file(base / "model.safetensors").items()}
    (model / "model.safetensors").unlink()
    names = sorted(weights)
    files = {name: f"model-0000{1 + n % 3}-of-00003.safetensors" for n, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in names if files[name] == file}, model / file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    # what no index names is not loaded, and would lack the adapter
    save_file(weights, model / "consolidated.safetensors")
    parts = make_adapter(tmp_path / "lora", base)
    merged = adapted(model, tmp_path / "lora").merged()
    assert sorted(path.name for path in merged.glob("*.safetensors")) == sorted(set(files.values()))
    for name in names:
        found, expected = load_file(merged / files[name])[name], weights[name]
        if name.removesuffix(".weight") in parts:
            b, a = map(torch.from_numpy, parts[name.removesuffix(".weight")])
            # 8 of alpha over a rank of 4
            expected = (expected.double() + 2 * (b.double() @ a.double())).bfloat16()
            apart = (found.double() - expected.double()).abs()
            # sums in float32 and float64 that lie at a boundary round differently
            assert (apart <= 2**-7 * expected.double().abs()).all()
            assert (apart > 0).double().mean() < 1e-3
        else:
            assert found.equal(expected), name


@pytest.mark.long
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"v_proj": 3}}])
def test_merged_weights_are_those_of_peft(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    torch.manual_seed(0)
    config = LoraConfig(r=5, lora_alpha=7, target_modules=["q_proj", "v_proj", "up_proj"], **settings)
    trained = get_peft_model(load(base), config)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    trained.save_pretrained(tmp_path / "lora")
    merged = load(adapted(base, tmp_path / "lora").merged())
    theirs = PeftModel.from_pretrained(load(base), str(tmp_path / "lora"))
    ids = torch.arange(20, 60)[None]
    with torch.inference_mode():
        plain, ours, unmerged = (model(input_ids=ids).logits for model in (load(base), merged, theirs))
    assert (ours - unmerged).abs().max() < 1e-4
    assert (ours - plain).abs().max() > 1
    for name, weight in theirs.merge_and_unload().state_dict().items():
        assert (merged.state_dict()[name] - weight).abs().max() < 1e-6, name


# --- which model it is


def test_a_merged_model_is_another_model_wherever_it_is_made(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(tmp_path / "lora", base)
    one = adapted(base, tmp_path / "lora")
    assert not one.folder.exists()
    planned = one.sha256
    folder = one.merged()
    assert folder == one.folder
    assert model_sha256(folder) == planned != model_sha256(base)
    made = (folder / "model.safetensors").stat()
    assert one.merged() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made.st_mtime_ns
    # another machine, with the same files in other places
    monkeypatch.setenv("VSTEER_HOME", str(tmp_path / "other home"))
    shutil.copytree(base, tmp_path / "model there")
    shutil.copytree(tmp_path / "lora", tmp_path / "lora there")
    there = adapted(tmp_path / "model there", tmp_path / "lora there")
    assert there.sha256 == planned
    assert there.merged() != folder
    assert model_sha256(there.merged()) == planned


def test_each_file_counts(base: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "lora", base)
    make_adapter(tmp_path / "other alpha", base, lora_alpha=9)
    make_adapter(tmp_path / "other weights", base, seed=1)
    shutil.copytree(base, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text("{}")
    found = {
        adapted(model, tmp_path / lora).sha256
        for model, lora in (
            (base, "lora"),
            (base, "other alpha"),
            (base, "other weights"),
            (tmp_path / "model", "lora"),
        )
    }
    assert len(found) == 4


def test_a_merged_model_that_was_changed_is_refused(base: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "lora", base)
    folder = adapted(base, tmp_path / "lora").merged()
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for use in (lambda: model_sha256(folder), lambda: adapted(base, tmp_path / "lora").merged()):
        with pytest.raises(ModelError, match="isn't what was merged there"):
            use()
    shutil.rmtree(folder)
    assert adapted(base, tmp_path / "lora").merged() == folder


def test_an_adapter_that_changes_while_it_is_merged_makes_no_model(
    base: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_adapter(tmp_path / "lora", base)
    one = adapted(base, tmp_path / "lora")
    real = Adapted._changed

    def change(self: Adapted, *arguments: Any) -> Any:
        (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"of": "another"}))
        return real(self, *arguments)

    monkeypatch.setattr(Adapted, "_changed", change)
    with pytest.raises(ModelError, match="changed while it was merged"):
        one.merged()
    assert not list((home / "models").glob("merged-*"))


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_dora": True}, "use_dora: True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: ['lm_head']"),
        ({"bias": "all"}, "bias: 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"a_setting_of_next_year": 0.5}, "a_setting_of_next_year: 0.5"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"r": 5}, "rank 4"),
        ({"x" * 10_000: "y" * 10_000}, "xxx"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(
    base: Path, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    make_adapter(tmp_path / "lora", base, **settings)
    refused(adapted(base, tmp_path / "lora"), named)


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        ("model.layers.1.self_attn.q_proj.lora_magnitude_vector", (128,)),
        ("model.embed_tokens.lora_embedding_A", (4, 300)),
        ("model.layers.1.self_attn.q_proj.lora_B.bias", (128,)),
        ("lm_head.weight", (300, 128)),
        ("model.layers.1.self_attn.q_proj.lora_A.weight", (4, 4, 4)),
        ("model.layers.2.self_attn.q_proj.lora_A.weight", (4, 128)),
        ("model.layers.9.self_attn.q_proj", None),
        ("model.layers.2.input_layernorm", None),
        ("model.embed_tokens", None),
        ("model.layers.2.self_attn.k_proj", None),
    ],
)
def test_tensors_that_fit_no_linear_layer_are_refused_by_name(
    base: Path, tmp_path: Path, tensor: str, shape: tuple[int, ...] | None
) -> None:
    """Those without a shape are an A and a B of a q_proj's size."""
    tensors = (
        {f"{tensor}.lora_{part}.weight": (4, 128) if part == "A" else (128, 4) for part in "AB"}
        if shape is None
        else {tensor: shape}
    )
    beside = {f"base_model.model.{name}": np.ones(size, np.float32) for name, size in tensors.items()}
    make_adapter(tmp_path / "lora", base, tensors=beside)
    refused(adapted(base, tmp_path / "lora"), tensor.partition(".lora")[0])


def test_damaged_folders_are_refused(base: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora"
    refused(adapted(base, lora), "no adapter at")
    make_adapter(lora, base)
    weights, config = lora / "adapter_model.safetensors", lora / "adapter_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-9])
    refused(adapted(base, lora), "holds no weights")
    weights.rename(lora / "adapter_model.bin")
    refused(adapted(base, lora), "has no adapter_model.safetensors", "pickle")
    (lora / "adapter_model.bin").rename(weights)
    weights.write_bytes(whole)
    for text in ("{", "[]", '{"peft_type": null}'):
        config.write_text(text)
        refused(adapted(base, lora), "adapter_config.json")
    config.unlink()
    refused(adapted(base, lora), "has no adapter_config.json")


@pytest.mark.parametrize(
    ("size", "named"), [(0.0, "changes no weight"), (np.nan, "infinite or NaN"), (1e30, "infinite or NaN")]
)
def test_an_adapter_that_does_nothing_or_breaks_the_model_is_refused(
    base: Path, tmp_path: Path, home: Path, size: float, named: str
) -> None:
    make_adapter(tmp_path / "lora", base, size=size)
    one = adapted(base, tmp_path / "lora")
    with pytest.raises(ModelError, match=named):
        one.merged()
    assert not list((home / "models").glob("merged-*"))


def test_a_quantised_model_is_refused(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "model")
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    make_adapter(tmp_path / "lora", base)
    refused(adapted(tmp_path / "model", tmp_path / "lora"), "quantised")


def refused(one: Adapted, named: str, hinted: str = "") -> None:
    with pytest.raises(VsteerError) as error:
        one.check()
    assert isinstance(error.value, ModelError | UnsupportedError)
    assert named in error.value.message
    assert hinted in error.value.hint
    assert len(str(error.value)) <= 600
    with pytest.raises(VsteerError):
        one.merged()
