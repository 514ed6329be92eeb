"""Parity of the other families with Hugging Face, by the suite of tiny-llama.

Mistral's, Gemma's and gpt-oss's windows (64 tokens) are shorter than prompts, Gemma's and GLM's norms stand
around the MLP too, Gemma's and Granite's embedding is scaled, and experts are routed in Mixtral, Qwen3-MoE
and gpt-oss, whose attention has sinks.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

from tests.engine.conftest import KV_BLOCKS, WITH_MODULES, Setup, on
from tests.engine.test_parity import check
from tests.tiny_families import folder_of, tiny_model
from vsteer.engine.driver import VllmEngine
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.families import FAMILIES, Family


@functools.cache
def reference_of(model: str) -> ReferenceEngine:
    torch.set_num_threads(1)
    return ReferenceEngine(folder_of(model))


def parity_of(setup: Setup) -> tuple[float, int]:
    """How long vectors are beside the stream, and how long prompts are, so that slips show."""
    if setup.model == "tiny-gemma3":
        # with five windows to one layer that sees all, what one token does shows less, least far from the end
        return 1.0, 100
    return 0.5, 120


def check_family(engine: VllmEngine, setup: Setup) -> None:
    reference = reference_of(setup.model)
    relative, longest = parity_of(setup)
    check(
        engine,
        reference,
        prompt_tokens=(6, longest),
        operations=WITH_MODULES if setup.ablates else (),
        relative=relative,
    )


def test_every_supported_family_has_its_tiny_model_and_its_line_in_the_docs() -> None:
    listed = (Path(__file__).parents[2] / "docs/families.md").read_text().partition("## What is not here")[0]
    for family in FAMILIES:
        config = json.loads((Path(folder_of(tiny_model(family))) / "config.json").read_text())
        assert config["architectures"] == [family.architecture]
        (line,) = (line for line in listed.splitlines() if f"`{family.architecture}`" in line)
        marks = [cell.strip() for cell in line.split("|")[4:7]]
        said = {True: "yes", False: "no"}
        assert marks == ["yes", said[family.attention_as_it_is], said[family.mechanism]]


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_record_says_whether_attention_is_added_as_it_is(family: Family) -> None:
    """In transformers, where heads are read for `iti`."""
    model = reference_of(tiny_model(family)).model
    block = model.model.layers[2]
    seen: dict[str, torch.Tensor] = {}
    summed = getattr(block, "pre_feedforward_layernorm", block.post_attention_layernorm)
    hooks = [
        block.register_forward_pre_hook(lambda _, inputs: seen.update(before=inputs[0])),
        block.self_attn.o_proj.register_forward_hook(lambda _, inputs, gave: seen.update(gave=gave)),
        summed.register_forward_pre_hook(lambda _, inputs: seen.update(behind=inputs[0])),
    ]
    try:
        with torch.inference_mode():
            model(input_ids=torch.arange(20, 40)[None])
    finally:
        for hook in hooks:
            hook.remove()
    apart = (seen["before"] + seen["gave"] - seen["behind"]).abs().max()
    assert (float(apart) < 1e-4) == family.attention_as_it_is


def named(setup: Setup) -> str:
    return f"{setup.model}-{setup}"


def setup_of(family: str, eager: bool, tensor_parallel: int, caching: bool) -> Setup:
    # vLLM gives each kind of attention its blocks, and Gemma 3's one full layer in six makes six kinds
    blocks = {"gemma2": 30, "gemma3": 100}.get(family, KV_BLOCKS)
    return Setup(
        eager,
        tensor_parallel,
        caching,
        f"tiny-{family}",
        kv_blocks=blocks,
        captures=caching,
        ablates=caching,
    )


# Those furthest from Llama: with windows and norms, with experts and sinks, with a layer written out anew.
QUICK_FAMILIES = ("gemma3", "gptoss", "granite")
QUICK = [setup_of(family, True, 1, True) for family in QUICK_FAMILIES]
# with ablation and capture in the graph; and, without a cache, compiled with neither
SLOW = [
    setup_of(family, eager, tensor_parallel, caching)
    for family in (family.name.lower() for family in FAMILIES if family.name != "Llama")
    for eager, tensor_parallel, caching in (
        (True, 1, True),
        (True, 2, True),
        (False, 1, True),
        (False, 2, True),
        (False, 1, False),
    )
]


@on(*QUICK, slow=SLOW, ids=named)
def test_parity(engine: VllmEngine, request: pytest.FixtureRequest) -> None:
    check_family(engine, request.node.callspec.params["engine"])
