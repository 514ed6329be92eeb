"""A grid's tasks of lm-eval through vLLM, against the harness with its own Hugging Face models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.evaluations.lm_eval_oracle import TASKS, evaluated
from tests.results.made_up import ask
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan.plan import make_plans
from vsteer.run.start import run_grid
from vsteer.vectors.files import load

MODEL = "smollm2-135m-instruct"
LAYER, MULTIPLIER = 12, 3.0
NAMES = ("facts", "facts_perplexity", "facts_generation")
GRID = f"""\
version: 1
name: try
model: {{id: {MODEL}, dtype: float32}}
engine: {{enforce_eager: true, max_model_len: 512}}
vectors: {{v: {{data: sentiment, token: last}}}}
grid: [{{vector: v, layers: {LAYER}, multipliers: [{MULTIPLIER}]}}]
evaluations:
  - {{kind: lm_eval, tasks: [facts.yaml, facts_perplexity.yaml, facts_generation.yaml], num_fewshot: 2}}
"""


@pytest.mark.engine
def test_metrics_and_log_likelihoods_are_those_of_the_harness_s_own_models(tmp_path: Path) -> None:
    for file in TASKS.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "grid.yaml").write_text(GRID)
    compare(run_grid(tmp_path / "grid.yaml").folder, tmp_path)


def compare(run: Path, tasks: Path) -> None:
    (plan,) = make_plans(read_grid(tasks / "grid.yaml"))
    numbers = {one.item_id: one.item.line - 1 for block in plan.blocks for one in block.prompts}
    (file,) = (run / "vectors").glob("v-raw-*.safetensors")
    direction = load(file).directions[LAYER]

    folder = str(resolve(MODEL).model)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    harness = HFLM(
        pretrained=model, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=1, max_length=512
    )

    def add(_module: object, _inputs: object, output: Any) -> Any:
        return output + MULTIPLIER * torch.from_numpy(direction)

    unsteered = evaluated(harness, tasks, NAMES, num_fewshot=2)
    hook = model.model.layers[LAYER].register_forward_hook(add)
    steered = evaluated(harness, tasks, NAMES, num_fewshot=2)
    hook.remove()

    moved = 0.0
    for vector, found in (("", unsteered), ("v", steered)):
        rows = {
            (evaluation.removeprefix("lm_eval:"), numbers[item]): (logprobs, text, engine)
            for evaluation, item, logprobs, text, engine in duckdb.sql(
                "select evaluation, item_id, choice_logprobs, text, engine"
                f" from read_parquet('{run}/rows/*.parquet') where vector = '{vector}' and status = 'ok'"
            ).fetchall()
        }
        assert len(rows) == 3 * 12
        for task, samples in found["samples"].items():
            for sample in samples:
                logprobs, text, engine = rows[task, sample["doc_id"]]
                if task == "facts_generation":
                    assert text == sample["resps"][0][0]
                    continue
                assert engine == "vllm forks"
                expected = [float(one[0][0]) if task == "facts" else float(one[0]) for one in sample["resps"]]
                assert logprobs == pytest.approx(expected, abs=1e-3)
        mine = {
            (row["evaluation"], row["metric"]): row["value"]
            for row in ask("lm_eval", run)
            if row["vector"] == vector
        }
        for task, metrics in found["results"].items():
            for name, value in metrics.items():
                metric, _, pipeline = name.partition(",")
                if pipeline and not metric.endswith("_stderr"):
                    own = mine[f"lm_eval:{task}", metric if pipeline == "none" else name]
                    wanted = pytest.approx(value, rel=1e-4) if task == "facts_perplexity" else value
                    assert own == wanted, (task, name)
        moved = abs(mine["lm_eval:facts_perplexity", "word_perplexity"] - moved)
    assert moved > 1  # the steering does something
