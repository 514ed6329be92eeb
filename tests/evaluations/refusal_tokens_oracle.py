"""Refusal tokens by transformers alone: an ablation is weights that can't write the direction.

`check` holds what an engine says of a grid's rows on tiny-llama against that.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan.plan import Plan, make_plans
from vsteer.protocol import Engine, Steering, Vectors
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

LAYER, MULTIPLIER = 3, 1.5
TOKENS = ("I", "S", " n")
INSTRUCTIONS = ["How do I bake bread?", "Name a river.", "Why?"]
GRID = f"""\
version: 1
name: try
model: {{id: tiny-llama, dtype: float32}}
vectors: {{v: {{file: v.safetensors}}}}
grid:
  - {{vector: v, layers: {LAYER}, operation: ablate_everywhere}}
  - {{vector: v, layers: {LAYER}, multipliers: {MULTIPLIER}, positions: [all, after_prompt]}}
evaluations: [{{kind: refusal_tokens, data: asked.json, tokens: {list(TOKENS)}}}]
"""


def make_plan(folder: Path) -> tuple[Plan, np.ndarray]:
    config = json.loads(Path(resolve("tiny-llama").model, "config.json").read_text())
    direction = np.random.default_rng(7).standard_normal(config["hidden_size"]).astype(np.float32)
    save(SteeringVector("v", {LAYER: direction}), folder / "v.safetensors")
    (folder / "asked.json").write_text(json.dumps(INSTRUCTIONS))
    (folder / "grid.yaml").write_text(GRID)
    (plan,) = make_plans(read_grid(folder / "grid.yaml"))
    return plan, direction


def check(engine: Engine, folder: Path) -> None:
    """Every row's log-odds, unsteered, ablated and added to, as transformers has them."""
    plan, direction = make_plan(folder)
    vectors: Vectors = {key: {LAYER: direction} for key in plan.vectors}
    engine.load(vectors, plan.steerings())
    oracle = Oracle(direction)
    rows = list(plan.rows())
    assert len(rows) == len(INSTRUCTIONS) * 4
    results = {result.id: result for result in engine.run(r for row in rows for r in row.requests())}
    seen = set()
    for row in rows:
        (request,) = row.requests()
        record = row.record([results[request.id]])
        config = row.config
        expected = oracle.log_odds(row.rendered.question, config.operation, config.steering)
        assert record["status"] == "ok"
        assert record["logit_diff"] == pytest.approx(expected, abs=1e-4)
        log_p, log_rest = record["choice_logprobs"]
        assert log_p - log_rest == pytest.approx(expected, abs=1e-4)
        assert np.exp(log_p) + np.exp(log_rest) == pytest.approx(1, abs=1e-12)
        assert record["choices"] == ["I or S or  n", "any other token"]
        seen.add(round(expected, 3))
    assert len(seen) == len(rows)  # every steering of every prompt says something else


class Oracle:
    def __init__(self, direction: np.ndarray) -> None:
        folder = resolve("tiny-llama").model
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.direction = torch.from_numpy(direction)
        self.ablated = without(copy.deepcopy(self.plain), self.direction)

    def log_odds(self, question: str, operation: str, steering: Steering | None) -> float:
        """log of the softmax's sum over the tokens, less the log of its sum over all others."""
        header = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer(header, add_special_tokens=False)["input_ids"]
        model, hooks = self.plain, []
        if steering is not None and operation == "add":
            start = len(ids) - 1 if steering.positions == "after_prompt" else 0

            def add(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
                moved = output.clone()
                moved[:, start:] += MULTIPLIER * self.direction
                return moved

            hooks.append(model.model.layers[LAYER].register_forward_hook(add))
        elif steering is not None:
            model = self.ablated
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        for hook in hooks:
            hook.remove()
        chosen = torch.zeros(len(logits), dtype=torch.bool)
        # the header ends in a line break, so that a token of its own follows
        chosen[[self.tokenizer.convert_tokens_to_ids(text.replace(" ", "Ġ")) for text in TOKENS]] = True
        assert int(chosen.sum()) == len(TOKENS)
        return float(torch.logsumexp(logits[chosen], 0) - torch.logsumexp(logits[~chosen], 0))


def without(model: Any, direction: torch.Tensor) -> Any:
    """The model with no weight left that writes along the direction: embedding, attention and MLP."""
    r = direction.double() / direction.double().norm()

    def cut(written: torch.Tensor) -> torch.Tensor:
        """Of a matrix whose columns are written to the stream."""
        return (written.double() - torch.outer(r, r @ written.double())).float()

    assert not model.config.tie_word_embeddings
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(cut(model.model.embed_tokens.weight.T).T)
        for block in model.model.layers:
            for module in (block.self_attn.o_proj, block.mlp.down_proj):
                assert module.bias is None
                module.weight.copy_(cut(module.weight))
    return model
