"""Rows of a plan through the reference engine, against plain transformers on answers written out in full."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vsteer.engine.proof.reference import ReferenceEngine
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan.plan import make_plans

LAYER, MULTIPLIER = 3, 4.0
GRID = f"""\
version: 1
name: try
model: {{id: tiny-llama, dtype: float32}}
vectors: {{v: {{data: items.jsonl}}}}
grid:
  - vector: v
    layers: {LAYER}
    multipliers: {MULTIPLIER}
    positions: [all, after_prompt, last_prompt_token]
evaluations: [{{kind: choice, data: items.jsonl}}]
"""
ITEMS = [("How was it?", "Splendid", "Bad"), ("And then?", "He smiled", "He wept")]


def test_choice_probabilities_equal_transformers(tmp_path: Path) -> None:
    folder = resolve("tiny-llama").model
    lines = [json.dumps({"prompt": q, "positive": a, "negative": b}) for q, a, b in ITEMS]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    (tmp_path / "grid.yaml").write_text(GRID)
    (plan,) = make_plans(read_grid(tmp_path / "grid.yaml"))
    engine = ReferenceEngine(folder)
    direction = np.random.default_rng(0).standard_normal(engine.info.hidden_size).astype(np.float32)
    (key,) = plan.vectors
    engine.load({key: {LAYER: direction}}, plan.steerings())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = list(plan.rows())
    assert len(rows) == 2 * 4
    seen = []
    for row in rows:
        requests = row.requests()
        results = {result.id: result for result in engine.run(requests)}
        record = row.record([results[request.id] for request in requests])
        question = next(words for words in ITEMS if words[0] == row.rendered.question)
        header = tokenizer.apply_chat_template(
            [{"role": "user", "content": question[0]}], tokenize=False, add_generation_prompt=True
        )
        length = len(tokenizer(header, add_special_tokens=False)["input_ids"])
        spans = {
            "all": (0, None),
            "after_prompt": (length - 1, None),
            "last_prompt_token": (length - 1, length),
        }
        span = spans.get(str(row.config.positions))
        expected = [answer_logprob(model, tokenizer, header, word, span, direction) for word in question[1:]]
        assert record["choice_logprobs"] == pytest.approx(expected, abs=1e-4)
        assert record["total_mass"] == pytest.approx(np.exp(expected).sum(), rel=1e-3)
        assert record["logit_diff"] == pytest.approx(expected[0] - expected[1], abs=2e-4)
        assert min(record["choice_tokens"]) > 1
        seen.append(record["choice_logprobs"][0])
    assert len({round(value, 3) for value in seen}) == len(seen)  # every steering says something else


def answer_logprob(
    model: Any,
    tokenizer: Any,
    header: str,
    answer: str,
    span: tuple[int, int | None] | None,
    direction: np.ndarray,
) -> float:
    """log p(answer | header) from one forward over all of it, the direction added at the span's tokens."""
    ids = tokenizer(header + answer, add_special_tokens=False)["input_ids"]
    start = len(tokenizer(header, add_special_tokens=False)["input_ids"])

    def add(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        hidden = output.clone()
        if span is not None:
            hidden[:, span[0] : span[1]] += MULTIPLIER * torch.from_numpy(direction)
        return hidden

    hook = model.model.layers[LAYER].register_forward_hook(add)
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    hook.remove()
    return float(sum(logprobs[n - 1, ids[n]] for n in range(start, len(ids))))
