"""The blocks written out for mechanism are those of transformers, for every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.mechanism.tiny import FAMILIES, TOKENS, model
from vsteer.errors import UnsupportedError
from vsteer.mechanism.model import Actor, Model, Past
from vsteer.models.tiny_llama import CONFIG, write_json

# longer than the tiny models' windows of 64 tokens
LONG = TOKENS * 8


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_transformers(name: str) -> None:
    of = model(name, "float32")
    stream, rails = of.embed([LONG])
    logits = of.logits(of.read_out(of.run(stream, rails, Actor()), Actor()))
    theirs = of.whole(input_ids=torch.tensor([LONG])).logits
    assert torch.allclose(logits, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_text_in_parts_is_the_text(name: str) -> None:
    of = model(name)
    stream, rails = of.embed([LONG])
    whole, past = of.run(stream, rails, Actor()), Past()
    parts = [of.run(stream[:, a:b], rails, Actor(), past=past) for a, b in ((0, 50), (50, 51), (51, 88))]
    assert torch.allclose(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_what_the_heads_write_apart_adds_up(name: str) -> None:
    of = model(name)
    stream, rails = of.embed([TOKENS])
    for block in of.blocks:
        heads = block.heads(stream, rails, Actor(), None)
        apart = block.write_apart(heads)
        assert apart.shape == (1, of.heads, len(TOKENS), of.width)
        assert torch.allclose(apart.sum(1), block.write(heads), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("GPT2LMHeadModel", "gpt2"),
        # these steer, and their blocks are others
        ("Glm4ForCausalLM", "glm4"),
        ("MixtralForCausalLM", "mixtral"),
        ("GraniteForCausalLM", "granite"),
    ],
)
def test_other_families_are_refused_by_name(tmp_path: Path, architecture: str, kind: str) -> None:
    write_json(tmp_path / "config.json", {**CONFIG, "architectures": [architecture], "model_type": kind})
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    write_json(tmp_path / "tokenizer.json", {})
    with pytest.raises(UnsupportedError, match=architecture):
        Model.load(str(tmp_path))
