"""Conditions through vLLM: cosines against Hugging Face, and rows that are steered or the baseline's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.engine.conftest import CAPTURES, ONE, on
from tests.run.test_conditions import LAYER, plan_of, written
from vsteer.engine.driver import VllmEngine
from vsteer.models import resolve
from vsteer.run import cosines
from vsteer.run.start import run_grid

ABSOLUTE, LOGPROBS = 1e-5, 1e-4
ANSWERS = "choice_logprobs, text, token_ids, steered_tokens"


class Kept:
    """The tests' engine, which a run does not close."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        pass


@pytest.mark.long
@on(ONE)
def test_cosines_and_rows_are_hugging_faces(
    engine: VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cosines, "CAPTURES", CAPTURES)
    # greedy, and asked once
    pairs = ("temperature: 1, samples: 2", "temperature: 0")
    grid = written(tmp_path, *pairs)
    (plan,) = [plan_of(grid)]
    found = by_transformers(plan)
    # thresholds in the middle of what the model gives, so that each condition holds on some prompts alone
    middle = {token: float(np.median([one[token] for one in found.values()])) for token in ("mean", "last")}
    grid = written(
        tmp_path,
        *pairs,
        "above: [-0.05, 0.0, 0.05]",
        f"above: [{middle['mean']:.9f}]",
        "below: 0}",
        f"below: {middle['last']:.9f}}}",
    )
    outcome = run_grid(grid, load=lambda plan, spec, extracts: Kept(engine))
    file = outcome.folder / "vectors" / "cosines.parquet"
    table = duckdb.sql(f"select prompt_id, token, cosine, tokens from read_parquet('{file}')").fetchall()
    assert len(table) == 2 * len(found)
    off = max(abs(cosine - found[prompt_id][token]) for prompt_id, token, cosine, _ in table)
    spread = np.std([cosine for *_, cosine, _ in table])
    print(f"{len(table)} cosines, spread {spread:.3f}, off by {off:.1e}")
    assert off < ABSOLUTE
    assert spread > 100 * ABSOLUTE

    rows = duckdb.sql(
        "select evaluation, item_id, letter_order, control, multiplier, positions, condition_met, prompt_id,"
        f" {ANSWERS} from read_parquet('{outcome.folder}/rows/*.parquet') where status = 'ok'"
    ).fetchall()
    assert len(rows) == plan_of(grid).row_count
    plain = {(*row[:3], *row[3:6]): row for row in rows if row[6] is None}
    counts = {True: 0, False: 0}
    for row in rows:
        if (met := row[6]) is None:
            continue
        counts[met] += 1
        spans, _, condition = row[5].partition(" when ")
        token, side = ("mean", "above") if "mean above" in condition else ("last", "below")
        cosine = found[row[7]][token]
        if abs(cosine - middle[token]) > ABSOLUTE:
            assert met == ((cosine > middle[token]) == (side == "above"))
        same = plain[(*row[:3], *row[3:5], spans)] if met else plain[(*row[:3], "", 0.0, "")]
        logprobs, *rest = row[8:]
        assert rest == list(same[9:])
        if not met:
            assert logprobs == same[8]
        elif logprobs is not None:
            assert logprobs == pytest.approx(same[8], abs=LOGPROBS)
    assert min(counts.values()) > 20
    moved = [
        abs(np.subtract(row[8], plain[(*row[:3], "", 0.0, "")][8])).max()
        for row in rows
        if row[6] and row[8] is not None
    ]
    assert np.median(moved) > 10 * LOGPROBS


def by_transformers(plan: Any) -> dict[str, dict[str, float]]:
    """The cosine of each prompt, without a forced prefix, by hidden_states[L + 1] in float32."""
    from tests.run.test_conditions import HARM

    folder = resolve("tiny-llama").model
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    along = HARM.astype(np.float64)
    found = {}
    for block in plan.blocks:
        for one in block.prompts:
            ids = one.prompt.token_ids[: one.prompt.template_length]
            with torch.no_grad():
                hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1]
            read = hidden[0].double().numpy()
            vectors = {"mean": read.mean(axis=0), "last": read[-1]}
            found[one.prompt_id] = {
                token: float(vector @ along / np.linalg.norm(vector) / np.linalg.norm(along))
                for token, vector in vectors.items()
            }
    return found
