"""Conditions on prompts: each is decided by a cosine worked out here, and rows are what follows of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from tests.fake_engine import FakeBlockEngine, FakeEngine
from tests.results.made_up import ask
from tests.run import fake
from tests.run.test_kills import standing
from vsteer.grid.spec import read_grid
from vsteer.plan.plan import Plan, make_plans
from vsteer.protocol import Request, Result
from vsteer.run.cosines import condition_prompt
from vsteer.run.start import COMPLETE, INCOMPLETE, run_grid
from vsteer.store.check import check
from vsteer.store.planned import Planned
from vsteer.store.stored_plan import stored_plan
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

# tiny-llama has 6 layers and is 128 wide
LAYER, THRESHOLDS = 2, (-0.05, 0.0, 0.05)
RNG = np.random.default_rng(7)
HARM, SAD = (RNG.normal(size=128).astype(np.float32) for _ in range(2))
TOKENS = RNG.normal(size=(1000, 128)).astype(np.float32)
GRID = f"""\
version: 1
name: try
model: {{id: tiny-llama, dtype: float32}}
vectors: {{sad: {{file: sad.safetensors}}, harm: {{file: harm.safetensors}}}}
grid:
  - {{vector: sad, layers: [1], multipliers: [-1, 2], positions: [all, after_prompt]}}
  - vector: sad
    layers: [1]
    multipliers: [-1, 2]
    positions: [all, after_prompt]
    when: {{vector: harm, layer: {LAYER}, token: mean, above: {list(THRESHOLDS)}}}
  - vector: sad
    layers: [1]
    multipliers: 2
    when: {{vector: harm, layer: {LAYER}, token: last, below: 0}}
controls: {{random_vectors: 1}}
evaluations:
  - {{kind: choice, name: asked, data: items.json}}
  - {{kind: open_ended, name: open, data: open.json, max_tokens: 3, temperature: 1, samples: 2}}
"""
# What a row has of its answer.
ANSWER = (
    "status, text, token_ids, finish_reason, choices, choice_logprobs, choice_tokens, matching, total_mass,"
    " p_match, logit_diff, prompt_tokens, completion_tokens, steered_tokens"
)


def stream(tokens: Iterable[int], layer: int) -> NDArray[np.float32]:
    """The made-up stream behind a layer: by the tokens up to each, and by the layer."""
    upto = np.cumsum([token + 7 for token in tokens])
    found: NDArray[np.float32] = np.roll(TOKENS, layer, axis=1)[upto % 1000]
    return found


class Streaming(FakeEngine):
    """Captures the made-up stream."""

    def _captured(self, request: Request) -> NDArray[np.float32]:
        layers = [stream(request.prompt.token_ids, n)[list(request.capture)] for n in range(self.info.layers)]
        return np.stack(layers, axis=1)


class StreamingBlocks(FakeBlockEngine):
    _captured = Streaming._captured


class OtherStream(Streaming):
    """As another machine might: everything on the other side."""

    def _captured(self, request: Request) -> NDArray[np.float32]:
        return -super()._captured(request)


class NoCapture(Streaming):
    """An engine that can't read one of the prompts."""

    refused = ""

    def _answer(self, request: Request) -> Result:
        if request.capture and self.tokenizer.decode(request.prompt.token_ids[:40]).find("Rum?") >= 0:
            return Result(request.id, "error", error="no room: by order")
        return super()._answer(request)


class BaselineFails(Streaming):
    """Unsteered, one question can't be answered."""

    def _answer(self, request: Request) -> Result:
        asked = self.tokenizer.decode(request.prompt.token_ids)
        if not request.capture and not request.steering and "Rum?" in asked:
            return Result(request.id, "error", error="out of luck")
        return super()._answer(request)


def written(folder: Path, *replaced: str) -> Path:
    folder.mkdir(exist_ok=True)
    save(SteeringVector("sad", dict.fromkeys(range(6), SAD)), folder / "sad.safetensors", overwrite=True)
    save(SteeringVector("harm", {LAYER: HARM}), folder / "harm.safetensors", overwrite=True)
    drinks = ["Tea", "Ale", "Rum", "Gin", "Rye", "Milk", "Port", "Wine"]
    items = [
        {
            "question": f"{drink}?\n\nChoices:\n(A) Yes\n(B) No",
            "answer_matching_behavior": "(A)",
            "answer_not_matching_behavior": "(B)",
        }
        for drink in drinks
    ]
    (folder / "items.json").write_text(json.dumps(items))
    # some of more than 64 tokens, which are read in several stretches
    (folder / "open.json").write_text(json.dumps([f"Why {drink}? " + "So? " * 20 for drink in drinks]))
    text = GRID
    for old, new in zip(replaced[0::2], replaced[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    (folder / "grid.yaml").write_text(text)
    return folder / "grid.yaml"


def run(grid: Path, kind: type[FakeEngine] = Streaming, **how: Any) -> Any:
    options = {name: how.pop(name) for name in ("fresh", "retry_errors") if name in how}
    return run_grid(grid, load=fake.load(kind=kind, **how), **options)


def cosines(plan: Plan) -> dict[tuple[str, str], float]:
    """By prompt and token: the cosine as it is written in a book."""
    found = {}
    for block in plan.blocks:
        for one in block.prompts:
            tokens = one.prompt.token_ids[: one.prompt.template_length]
            assert len(tokens) < len(one.prompt.token_ids) or block.evaluation == "open"
            read = stream(tokens, LAYER).astype(np.float64)
            for token, vector in (("mean", read.mean(axis=0)), ("last", read[-1])):
                product = sum(float(a) * float(b) for a, b in zip(vector, HARM, strict=True))
                lengths = np.sqrt((vector**2).sum()) * np.sqrt((HARM.astype(np.float64) ** 2).sum())
                found[one.prompt_id, token] = product / lengths
    return found


def rows_of(folder: Path, columns: str = "*") -> list[dict[str, Any]]:
    rows = duckdb.sql(
        f"select {columns} from read_parquet('{folder}/rows/*.parquet') join"
        f" (select config_id, evaluation, when_token, when_side, when_threshold"
        f" from read_parquet('{folder}/configs.parquet')) using (config_id, evaluation) order by row_id"
    )
    return [dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall()]


def plan_of(grid: Path) -> Plan:
    (plan,) = make_plans(read_grid(grid))
    return plan


def hold(folder: Path, grid: Path) -> tuple[int, int]:
    """Hold every row to what its condition says; how many are steered under one, and how many are not."""
    plan, expected = plan_of(grid), cosines(plan_of(grid))
    plain: dict[tuple[Any, ...], list[Any]] = {}
    answers = {row["row_id"]: row for row in rows_of(folder, f"row_id, {ANSWER}")}
    rows = rows_of(folder)
    for row in rows:
        row["answer"] = answers[row["row_id"]]
        del row["answer"]["row_id"]
    at = ("evaluation", "item_id", "letter_order", "sample")
    for row in rows:
        if row["when_token"] is None:
            assert row["condition_met"] is None
            steering = (row["vector"], row["control"], row["multiplier"], row["positions"])
            plain[(*(row[name] for name in at), *steering)] = row["answer"]
    met = unmet = 0
    for row in rows:
        if row["when_token"] is None:
            continue
        cosine = expected[row["prompt_id"], row["when_token"]]
        above = bool(cosine > row["when_threshold"])
        holds = above if row["when_side"] == "above" else not above
        assert row["condition_met"] is holds
        spans, _, condition = row["positions"].partition(" when ")
        where = f"harm at layer {LAYER}, {row['when_token']} {row['when_side']} {row['when_threshold']}"
        assert condition == where
        steering = (row["vector"], row["control"], row["multiplier"], spans) if holds else ("", "", 0.0, "")
        plainly = plain[(*(row[name] for name in at), *steering)]
        assert row["answer"] == plainly
        if not holds:
            assert row["steered_tokens"] in (0, None)
        met, unmet = met + holds, unmet + (not holds)
    assert len(rows) == plan.row_count
    return met, unmet


@pytest.mark.parametrize("kind", [Streaming, StreamingBlocks])
def test_each_row_is_steered_or_the_baseline_s_as_its_cosine_says(
    tmp_path: Path, kind: type[FakeEngine]
) -> None:
    grid = written(tmp_path)
    asked: list[Request] = []

    class Counting(kind):  # type: ignore[misc, valid-type]
        def _answer(self, request: Request) -> Result:
            asked.append(request)
            found: Result = super()._answer(request)
            return found

    outcome = run(grid, Counting)
    met, unmet = hold(outcome.folder, grid)
    assert met > 50 < unmet
    # what doesn't hold costs nothing: it is in no request
    plan = plan_of(grid)
    rows = sum(block.rows for block in plan.blocks)
    assert len([one for one in asked if not one.capture and "." in one.id]) == rows - unmet
    # nor in those for perplexities, in which each text of a prompt is asked about once
    texts = {
        (row["prompt_id"], tuple(row["token_ids"])) for row in rows_of(outcome.folder) if row["token_ids"]
    }
    assert len([one for one in asked if not one.capture and "." not in one.id]) == len(texts)
    # each prompt is read once, in stretches of 64, whatever the number of configurations
    prompts = {condition_prompt(one) for block in plan.blocks for one in block.prompts}
    reads = [one for one in asked if one.capture and "." in one.id]
    assert len(reads) == sum(-(-len(tokens) // 64) for tokens in prompts)
    assert max(map(len, prompts)) > 64


@pytest.mark.long
def test_the_measured_cosines_are_kept_with_what_made_them(tmp_path: Path) -> None:
    grid = written(tmp_path)
    folder = run(grid).folder
    records = pq.read_table(folder / "vectors" / "cosines.parquet").to_pylist()
    expected = cosines(plan_of(grid))
    assert {(one["prompt_id"], one["token"]): one["cosine"] for one in records} == pytest.approx(expected)
    made = {
        (one["model"], one["dtype"], one["vector"], one["layer"], one["engine"], one["run_session"])
        for one in records
    }
    assert made == {("tiny-llama", "float32", "harm", LAYER, "stand-in", 1)}
    lengths = {
        one.prompt_id: one.prompt.template_length for block in plan_of(grid).blocks for one in block.prompts
    }
    assert {one["prompt_id"]: one["tokens"] for one in records} == lengths
    rates = {
        (row["threshold"], row["token"], row["evaluation"]): row["held"]
        for row in ask("condition_rates", folder)
    }
    for (threshold, token, evaluation), held in rates.items():
        ids = {
            one.prompt_id
            for block in plan_of(grid).blocks
            if block.evaluation == evaluation
            for one in block.prompts
        }
        of_set = [expected[prompt_id, token] for prompt_id in ids]
        assert held == sum(cosine < 0 if token == "last" else cosine > threshold for cosine in of_set)
    assert len(rates) == 2 * (len(THRESHOLDS) + 1)


@pytest.mark.long
@pytest.mark.parametrize("kind", [Streaming, StreamingBlocks])
def test_a_run_that_dies_goes_on_with_the_same_decisions(tmp_path: Path, kind: type[FakeEngine]) -> None:
    grid = written(tmp_path / "dies")
    # four engines, each of which dies among the rows, and one that would decide everything otherwise
    first = run(grid, kind, dies_after=60)
    assert first.fault
    standing = len(rows_of(first.folder))
    assert 0 < standing < plan_of(grid).row_count
    outcome = run(grid, OtherStream)
    assert len(hold(outcome.folder, grid)) == 2
    whole = run(written(tmp_path / "whole")).folder
    same = f"row_id, condition_met, vector_sha256, {ANSWER}"
    assert rows_of(outcome.folder, same) == rows_of(whole, same)
    records = pq.read_table(outcome.folder / "vectors" / "cosines.parquet").to_pylist()
    assert {one["run_session"] for one in records} == {1}


KILLED = """
import sys
from pathlib import Path
from tests.run import fake
from tests.run.test_conditions import Streaming
from vsteer.run.start import run_grid
run_grid(Path(sys.argv[1]), load=fake.load(kind=Streaming, pace=0.2))
"""


@pytest.mark.long
def test_a_run_that_is_killed_ends_as_one_that_was_not(tmp_path: Path) -> None:
    grid = written(tmp_path / "killed")
    folder = grid.parent / "runs" / "try"
    before = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(grid)], stderr=subprocess.DEVNULL)
        while process.poll() is None and standing(folder) < before + 50:
            time.sleep(0.1)
        process.kill()
        process.wait()
        before = standing(folder)
    assert 100 <= before < plan_of(grid).row_count
    run(grid)
    whole = run(written(tmp_path / "whole")).folder
    same = f"row_id, condition_met, vector_sha256, {ANSWER}"
    assert rows_of(folder, same) == rows_of(whole, same)


def test_a_condition_that_can_t_be_decided_fails_its_rows_and_no_other(tmp_path: Path) -> None:
    grid = written(tmp_path)
    outcome = run(grid, NoCapture)
    assert outcome.exit_code == INCOMPLETE
    rows = rows_of(outcome.folder)
    prompts = {one.prompt_id: one.question for block in plan_of(grid).blocks for one in block.prompts}
    undecided = [row for row in rows if row["when_token"] and "Rum?" in prompts[row["prompt_id"]]]
    assert {(row["status"], row["condition_met"], row["steered_tokens"]) for row in undecided} == {
        ("error", None, None)
    }
    for row in undecided:
        assert row["error"] == f"could not decide whether {row['positions'].partition(' when ')[2]}: {WHY}"
    others = [row for row in rows if row["when_token"] and row not in undecided]
    assert len(others) > len(undecided) > 10
    assert all(row["condition_met"] is not None for row in others)
    assert not any("could not decide" in (row["error"] or "") for row in others)
    # once it can be read, the rows are what they are in any other run
    run(grid, retry_errors=True)
    hold(outcome.folder, grid)


WHY = "no room: by order"


@pytest.mark.long
def test_where_the_baseline_failed_so_do_the_rows_that_have_its_values(tmp_path: Path) -> None:
    grid = written(tmp_path)
    folder = run(grid, BaselineFails).folder
    unmet = [row for row in rows_of(folder) if row["condition_met"] is False]
    prompts = {one.prompt_id: one.question for block in plan_of(grid).blocks for one in block.prompts}
    failed = [row for row in unmet if "Rum?" in prompts[row["prompt_id"]]]
    assert failed
    assert {row["error"] for row in failed} == {"the unsteered row failed: out of luck"}
    assert {row["steered_tokens"] for row in failed} == {None}
    run(grid, retry_errors=True)
    hold(folder, grid)
    assert {
        row["attempt"] for row in rows_of(folder) if row["row_id"] in {one["row_id"] for one in failed}
    } == {2}


@pytest.mark.long
def test_the_run_is_whole_and_unmet_rows_are_no_failures(tmp_path: Path) -> None:
    grid = written(tmp_path)
    run(grid)
    outcome = run(grid, retry_errors=True)
    plan = plan_of(grid)
    planned = Planned(plan.parts())
    assert check(outcome.folder, planned) == check(outcome.folder, stored_plan(outcome.folder))
    assert {finding.what for finding in check(outcome.folder, planned)} <= {"errors"}
    assert outcome.exit_code in (COMPLETE, INCOMPLETE)
    assert "steered nothing" not in {row["problem"] for row in ask("failures", outcome.folder)}
    with duckdb.connect() as database:
        # a row that is unsteered and doesn't say so is found
        (shard,) = (outcome.folder / "rows").glob("*.parquet")
        rows = f"read_parquet('{shard}')"
        ((count,),) = database.sql(f"select count(*) from {rows} where condition_met = false").fetchall()
        assert count
    effects = duckdb.sql(
        f"select r.logit_diff - b.logit_diff from {rows} r join {rows} b"
        " on b.vector = '' and b.prompt_id = r.prompt_id and b.sample = r.sample"
        " where r.condition_met = false and r.kind = 'choice' and r.status = 'ok'"
    ).fetchall()
    assert {effect for (effect,) in effects} == {0.0}


@pytest.mark.long
def test_a_row_that_says_nothing_of_its_condition_is_found(tmp_path: Path) -> None:
    grid = written(tmp_path)
    folder = run(grid).folder
    configs = pq.read_table(folder / "configs.parquet")
    wrong = configs.set_column(
        configs.column_names.index("when_vector"),
        configs.schema.field("when_vector"),
        [["harm" if one else None for one in configs["vector"].to_pylist()]],
    )
    from vsteer.store.files import write_sealed

    write_sealed(folder / "configs.parquet", wrong)
    found = {finding.what: finding for finding in check(folder, Planned(plan_of(grid).parts()))}
    assert found["wrong_conditions"].fault
    assert found["wrong_conditions"].count > 10


@pytest.mark.long
def test_a_damaged_table_is_measured_anew(tmp_path: Path) -> None:
    grid = written(tmp_path)
    folder = run(grid).folder
    table = folder / "vectors" / "cosines.parquet"
    table.write_bytes(table.read_bytes()[:-50])
    grid.write_text(grid.read_text().replace("samples: 2", "samples: 3"))
    run(grid)
    assert list((folder / "set-aside").glob("cosines*"))
    hold(folder, grid)


@pytest.mark.long
def test_a_vector_without_an_angle_decides_nothing(tmp_path: Path) -> None:
    class Still(Streaming):
        def _captured(self, request: Request) -> NDArray[np.float32]:
            return np.zeros_like(super()._captured(request))

    rows = rows_of(run(written(tmp_path), Still).folder)
    conditional = [row for row in rows if row["when_token"]]
    assert {row["status"] for row in conditional} == {"error"}
    assert all(row["error"].endswith("has no angle") for row in conditional)
