"""What an engine refuses before it starts: unproven options, families that do not steer, a missing plugin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vsteer import models
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.errors import UnsupportedError, UsageError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            EngineOptions(
                vllm={"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
            ),
            "speculative decoding",
        ),
        (EngineOptions(pipeline_parallel_size=2), "pipeline parallelism on the V1 model runner"),
        (EngineOptions(vllm={"data_parallel_size": 2}), "data parallelism"),
        (EngineOptions(vllm={"enable_lora": True}), "LoRA"),
        (EngineOptions(vllm={"enable_prompt_embeds": True}), "prompt embeddings"),
        (EngineOptions(vllm={"kv_sharing_fast_prefill": True}), "kv_sharing_fast_prefill"),
        (
            EngineOptions(
                vllm={"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}}
            ),
            "KV-transfer",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unproven_option_is_refused(options: EngineOptions, message: str) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        VllmEngine(models.resolve("tiny-llama").model, options=options)
    assert message in refusal.value.message
    assert "what works: tensor parallelism" in refusal.value.hint


def test_an_option_that_vllm_does_not_know() -> None:
    with pytest.raises(UsageError, match="no_such_option"):
        VllmEngine(models.resolve("tiny-llama").model, options=EngineOptions(vllm={"no_such_option": 1}))


@pytest.mark.parametrize("engine_type", [VllmEngine, ReferenceEngine])
def test_an_unsupported_family(tmp_path: Path, engine_type: type[VllmEngine] | type[ReferenceEngine]) -> None:
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 64,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError) as refusal:
        engine_type(str(tmp_path))
    assert "GPT2LMHeadModel is not supported" in refusal.value.message
    assert "what works: LlamaForCausalLM" in refusal.value.hint


@pytest.mark.parametrize("plugins", ["", "others", "others,vsteering"])
def test_vllm_plugins_without_ours(monkeypatch: pytest.MonkeyPatch, plugins: str) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", plugins)
    with pytest.raises(UnsupportedError, match="VLLM_PLUGINS") as refusal:
        VllmEngine(models.resolve("tiny-llama").model)
    assert "add vsteer to it" in refusal.value.hint
