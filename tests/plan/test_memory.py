"""The estimate of memory against figures worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plan.sample import filled, planner
from vsteer import models
from vsteer.plan.memory import Memory, kv_bytes_per_token, memory_of


def test_keys_and_values_of_llama_2() -> None:
    # 32 layers, 32 heads of 128: half a megabyte a token in bfloat16, as is well known of Llama 2 7B
    llama = {"num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096}
    assert kv_bytes_per_token(llama, "auto", "bfloat16") == 512 * 1024
    # 70B: 80 layers, 8 of 64 heads are for keys
    big = {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 8192}
    assert kv_bytes_per_token(big, "auto", "bfloat16") == 320 * 1024
    assert kv_bytes_per_token(big, "fp8", "bfloat16") == 160 * 1024
    assert kv_bytes_per_token({}, "auto", "bfloat16") == 0
    for odd in ("32", [32], -1, 0, True, 1.5):
        assert kv_bytes_per_token(llama | {"num_hidden_layers": odd}, "auto", "bfloat16") == 0
        # what is unknown is worked out of what is known
        assert kv_bytes_per_token(llama | {"head_dim": odd}, "auto", "bfloat16") == 512 * 1024


def test_a_plan_knows_its_models_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    plan_of = planner(filled(tmp_path))
    plan = plan_of("evaluations:", "engine: {kv_cache_gib: 0.5, tensor_parallel_size: 2}\nevaluations:")
    assert plan.facts.folder is not None
    found = memory_of(plan)
    assert found is not None
    files = sum(path.stat().st_size for path in plan.facts.folder.glob("*.safetensors"))
    # stored and run in float32, a half on each of two devices; headers are not weights
    assert found.weights_bytes == pytest.approx(files / 2, rel=0.01)
    # 6 layers, 2 of 4 heads of 32 are for keys, float32, two ranks
    assert found.kv_bytes_per_token == 2 * 6 * 2 * 32 * 4 // 2
    if found.device == "CPU":
        assert found.kv_tokens == 2**29 // found.kv_bytes_per_token
        unknown = memory_of(plan_of())
        assert unknown is not None
        assert unknown.kv_tokens is None


def test_what_forks_and_the_float32_unembedding_hold_is_counted(tmp_path: Path) -> None:
    plan_of = planner(filled(tmp_path))

    def memory(dtype: str, forks: str) -> Memory:
        found = memory_of(
            plan_of(
                "dtype: float32",
                f"dtype: {dtype}",
                "evaluations:",
                f"engine: {{forks: {forks}}}\nevaluations:",
            )
        )
        assert found is not None
        return found

    assert memory("float32", "false").forks_bytes == 0
    assert memory("float32", "true").forks_bytes == 2**29
    exact, rounded = memory("float32", "true"), memory("bfloat16", "true")
    if exact.device == "CPU":
        config = json.loads((Path(models.resolve("tiny-llama").model) / "config.json").read_text())
        unembedding = 4 * config["vocab_size"] * config["hidden_size"]
        assert rounded.weights_bytes == exact.weights_bytes // 2 + unembedding
