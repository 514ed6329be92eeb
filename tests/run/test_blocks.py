"""Rows that come as blocks are those that come one by one, whatever ends the run in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from tests.fake_engine import FakeBlockEngine
from tests.run import fake
from vsteer.errors import EngineError
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan.plan import make_plans
from vsteer.protocol import Block, BlockScores
from vsteer.run import model_run
from vsteer.run.start import run_grid
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

GRID = """\
version: 1
name: blocks
model: {id: tiny-llama, dtype: float32}
vectors: {v: {file: v.safetensors}}
grid:
  - {vector: v, layers: [1, [2, 3]], multipliers: [-1, 0.1], positions: [all, last_prompt_token]}
controls: {random_vectors: 1}
evaluations:
  - {kind: choice, data: words.jsonl}
  - {kind: open_ended, data: sentiment, limit: 2, max_tokens: 3, coherence: false}
  - {kind: choice, data: sentiment, limit: 3}
  - {kind: refusal_tokens, data: words.txt, tokens: [I]}
"""
# One question's answers have several tokens each, and begin alike.
WORDS = (
    '{"question": "Which?", "answer_matching_behavior": " on the hill", "answer_not_matching_behavior":'
    ' " on the sea"}\n'
)


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    (tmp_path / "words.jsonl").write_text(WORDS)
    (tmp_path / "words.txt").write_text("Do it.\nDo that.\n")
    config = json.loads(Path(resolve("tiny-llama").model, "config.json").read_text())
    directions = np.random.default_rng(0).standard_normal((6, config["hidden_size"])).astype(np.float32)
    save(SteeringVector("v", dict(enumerate(directions))), tmp_path / "v.safetensors")
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    found = duckdb.sql(f"from read_parquet('{folder}/rows/*.parquet')").to_arrow_table()
    return {row["row_id"]: row for row in found.to_pylist()}


def test_a_block_gives_the_rows_that_requests_give(grid: Path) -> None:
    one_by_one = stored(run_grid(grid, load=fake.load(), fresh=True).folder)
    as_blocks = stored(run_grid(grid, load=fake.load(kind=FakeBlockEngine), fresh=True).folder)
    assert one_by_one.keys() == as_blocks.keys()
    failed = 0
    for name, row in one_by_one.items():
        block_row = as_blocks[name]
        for column in ("started_at", "finished_at"):
            assert row.pop(column) is not None
            assert block_row.pop(column) is not None
        failed += row["status"] == "error" and row["kind"] == "choice"
        assert block_row == row
    assert failed > 2


def test_a_start_goes_on_with_the_rows_of_a_block_that_are_missing(
    grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Requests leave a prompt half-way; blocks go on with the other half.
    monkeypatch.setattr(model_run, "RESTARTS", 0)
    outcome = run_grid(grid, load=fake.load(dies_after=180))
    assert isinstance(outcome.fault, EngineError)
    assert 0 < outcome.good < outcome.planned
    (plan,) = make_plans(read_grid(grid))
    outcome = run_grid(grid, load=fake.load(kind=FakeBlockEngine))
    rows = stored(outcome.folder)
    assert sorted(rows) == sorted(row.row_id for row in plan.rows())
    failed = {name for name, row in rows.items() if row["status"] == "error"}
    run_grid(grid, load=fake.load(kind=FakeBlockEngine), retry_errors=True)
    attempts = {name: row["attempt"] for name, row in stored(outcome.folder).items()}
    assert {name for name, attempt in attempts.items() if attempt == 2} == failed
    assert set(attempts.values()) == {1, 2}


def test_an_engine_that_dies_between_blocks_loses_none_that_came_back(grid: Path) -> None:
    assert run_grid(grid, load=fake.load(dies_after=25, kind=FakeBlockEngine)).fault
    (plan,) = make_plans(read_grid(grid))
    before = stored(grid.parent / "runs" / "blocks")
    # It is started four times, and each time there is room for one block of 17 rows, or what is left of it.
    assert len(before) >= 4 * 17
    after = stored(run_grid(grid, load=fake.load(kind=FakeBlockEngine)).folder)
    assert len(after) == plan.row_count
    assert {name: after[name]["run_session"] for name in before} == dict.fromkeys(before, 1)


def test_scores_that_are_no_numbers_fail_their_rows_alone(grid: Path) -> None:
    blocks = []

    class Broken(FakeBlockEngine):
        def _scores(self, block: Block) -> BlockScores:
            blocks.append(block)
            scores = super()._scores(block)
            # without the rows that the fake engine fails by itself
            logprobs = np.nan_to_num(scores.logprobs)
            logprobs[1] = np.nan
            return BlockScores(logprobs, scores.cached_tokens, scores.steered_tokens)

    rows = stored(run_grid(grid, load=fake.load(kind=Broken)).folder).values()
    failed = [row for row in rows if row["kind"] == "choice" and row["status"] == "error"]
    assert len(failed) == len(blocks) > 4
    assert {row["error"] for row in failed} == {"the model's log-probabilities are not numbers (NaN)"}
    assert all(row["p_match"] is None and row["prompt_tokens"] is None for row in failed)
