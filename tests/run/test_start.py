"""A run from a grid file to a store, through an engine that runs no model: resumed, killed, put right."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from tests.fake_engine import FakeEngine
from tests.run import fake
from vsteer.errors import DataError, StoreError
from vsteer.grid.spec import EngineSpec, read_grid
from vsteer.plan.plan import Plan, make_plans
from vsteer.run.start import COMPLETE, INCOMPLETE, INTERRUPTED, Outcome, run_grid
from vsteer.store.check import Finding, check
from vsteer.store.planned import Planned
from vsteer.store.status import status
from vsteer.vectors.files import load

GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors:
  v: {data: pairs.jsonl, token: last, norm: [raw, {residual: 0.1}]}
grid:
  - vector: v
    layers: [0, 3, 5]
    multipliers: [-1, 1]
    positions: [all, after_prompt]
controls: {random_vectors: 2, shuffled_labels: 3, system_prompts: {positive: Be glad.}}
evaluations:
  - {kind: choice, data: sentiment, limit: 6}
  - {kind: open_ended, data: sentiment, limit: 3, max_tokens: 5, temperature: 1, samples: 2}
"""
# 1 baseline + 2 norms x 3 layers x 2 multipliers x 2 positions, each with 5 controls
CHOICE_CONFIGS, OPEN_CONFIGS = 1 + 24 * 6, 1 + 24


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run of the grid from its first row to its last."""
    return run(written(tmp_path_factory.mktemp("whole")))


@pytest.fixture
def first(grid: Path, whole: Outcome) -> Outcome:
    """The same run beside the test's own grid."""
    folder = grid.parent / "runs" / "try"
    shutil.copytree(whole.folder, folder)
    return replace(whole, folder=folder)


# few, since every run extracts its vector from them
PAIRS = [{"prompt": f"Question {n}?", "positive": "Splendid", "negative": "Terrible"} for n in range(12)]


def written(folder: Path, *replaced: str) -> Path:
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    text = GRID
    for old, new in zip(replaced[0::2], replaced[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


def run(
    grid: Path,
    dies_after: int | None = None,
    pace: float = 0.0,
    *,
    fresh: bool = False,
    retry_errors: bool = False,
) -> Outcome:
    return run_grid(grid, fresh=fresh, retry_errors=retry_errors, load=fake.load(dies_after, pace))


def planned(grid: Path) -> list[str]:
    return [row.row_id for plan in make_plans(read_grid(grid)) for row in plan.rows()]


def checked(folder: Path, grid: Path) -> list[Finding]:
    return check(folder, Planned(part for plan in make_plans(read_grid(grid)) for part in plan.parts()))


def rows_of(folder: Path, columns: str = "*") -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = duckdb.sql(
        f"select {columns} from read_parquet('{folder}/rows/*.parquet') order by row_id"
    ).fetchall()
    return found


def events(folder: Path) -> list[str]:
    return [event["event"] for event in event_records(folder)]


def event_records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_a_run_has_every_planned_row_once(grid: Path) -> None:
    outcome = run(grid)
    folder = grid.parent / "runs" / "try"
    assert outcome.folder == folder
    ids = planned(grid)
    # a system prompt is one more configuration of each
    assert len(ids) == 6 * (CHOICE_CONFIGS + 1) + 3 * 2 * (OPEN_CONFIGS + 1)
    assert [row[0] for row in rows_of(folder, "row_id")] == sorted(ids)
    failing = [row for row in rows_of(folder, "status, error") if row[0] == "error"]
    assert outcome.exit_code == (INCOMPLETE if failing else COMPLETE)
    assert outcome.errors == len(failing)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows"] == len(ids)
    assert manifest["grid"]["name"] == "try"
    assert not [f for f in checked(folder, grid) if f.fault and f.what != "errors"]


def test_rows_say_what_made_them(whole: Outcome) -> None:
    folder = whole.folder
    found = rows_of(
        folder, "vector, norm, control, control_index, layer, multiplier, vector_sha256, steered_tokens, kind"
    )
    for vector, norm, _control, _index, layer, multiplier, sha256, steered, kind in found:
        assert (vector == "") == (norm == "") == (layer is None) == (multiplier == 0) == (sha256 == "")
        if steered is not None and kind == "open_ended":
            assert (steered > 0) == (multiplier != 0)
    hashes = {row[:4]: row[6] for row in found if row[0]}
    # raw and residual, and of each 2 random and 3 shuffled ones
    assert len(hashes) == len(set(hashes.values())) == 12
    configs = duckdb.sql(f"select config_id, vector_sha256 from '{folder}/configs.parquet'").fetchall()
    of_rows = dict(rows_of(folder, "config_id, vector_sha256"))
    assert {id_: sha256 for id_, sha256 in configs if id_ in of_rows} == of_rows


def test_controls_have_the_length_of_the_vector_beside_which_they_stand(whole: Outcome) -> None:
    folder = whole.folder / "vectors"
    for norm in ("raw", "residual-0.1"):
        (path,) = [
            p
            for p in folder.glob(f"v-{norm}-*.safetensors")
            if not {"random", "shuffled"} & set(p.stem.split("-"))
        ]
        vector = load(path)
        controls = [
            *folder.glob(f"v-{norm}-random-*.safetensors"),
            *folder.glob(f"v-{norm}-shuffled-*.safetensors"),
        ]
        assert len(controls) == 5
        for control in map(load, controls):
            for layer, direction in vector.directions.items():
                assert np.linalg.norm(control.directions[layer]) == pytest.approx(
                    np.linalg.norm(direction), rel=1e-5
                )
                assert not np.allclose(control.directions[layer], direction)
        if norm != "raw":
            for layer, direction in vector.directions.items():
                share = np.linalg.norm(direction) / vector.stream_norms[layer]
                assert share == pytest.approx(0.1, rel=1e-5)


def test_the_same_command_does_nothing_twice(grid: Path, first: Outcome) -> None:
    before = rows_of(first.folder)

    def no_engine(*_: object) -> FakeEngine:
        raise AssertionError("an engine was started for nothing")

    again = run_grid(grid, load=no_engine)
    assert rows_of(first.folder) == before
    assert (again.good, again.errors) == (first.good, first.errors)


def test_failed_rows_are_tried_again_with_retry_errors(grid: Path, first: Outcome) -> None:
    assert first.errors > 0
    again = run(grid, retry_errors=True)
    assert again.errors == first.errors
    attempts = dict(rows_of(first.folder, "row_id, attempt"))
    failed = [row[0] for row in rows_of(first.folder, "row_id, status") if row[1] == "error"]
    assert {attempts[row] for row in failed} == {2}
    assert set(attempts.values()) == {1, 2}


def test_failed_rows_are_tried_again_once_a_start(grid: Path) -> None:
    """However often the engine dies meanwhile."""
    grid = written(grid.parent, "samples: 2}", "samples: 2, coherence: false}")
    first = run(grid)
    assert first.errors > 24
    lives = iter([300])  # after some of the failed rows, and before the last of them
    again = run_grid(grid, retry_errors=True, load=lambda plan, *_: fake.fake_engine(plan, next(lives, None)))
    assert events(again.folder).count("engine_died") == 1
    attempts = dict(rows_of(again.folder, "row_id, attempt"))
    failed = [row[0] for row in rows_of(again.folder, "row_id, status") if row[1] == "error"]
    assert {attempts[row] for row in failed} == {2}
    third = run(grid, retry_errors=True)
    attempts = dict(rows_of(third.folder, "row_id, attempt"))
    assert {attempts[row] for row in failed} == {3}


def test_fresh_begins_anew_and_keeps_what_was(grid: Path, first: Outcome) -> None:
    again = run(grid, fresh=True)
    kept = [p for p in first.folder.parent.iterdir() if p != first.folder]
    assert [p.name.split(".before-")[0] for p in kept] == ["try"]
    same = "row_id, logit_diff, text, vector_sha256"
    assert rows_of(kept[0], same) == rows_of(again.folder, same)


def test_a_larger_grid_keeps_the_rows_that_stand(grid: Path, first: Outcome) -> None:
    folder = first.folder
    before = dict(rows_of(folder, "row_id, run_session"))
    run(written(grid.parent, "multipliers: [-1, 1]", "multipliers: [-1, 1, 2]"))
    after = dict(rows_of(folder, "row_id, run_session"))
    assert before.items() <= after.items()
    assert {session for row, session in after.items() if row not in before} == {2}


def test_rows_that_no_plan_has_any_more_are_moved_aside(
    grid: Path, first: Outcome, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another vector of the same name made them, and a query would mix the two."""
    folder = first.folder
    before = {row[0] for row in rows_of(folder, "row_id")}
    changed = written(grid.parent, "token: last", "token: -2")
    run(changed)
    ids = planned(changed)
    # the baselines are the same ones
    assert 0 < len(before & set(ids)) < len(before)
    assert [row[0] for row in rows_of(folder, "row_id")] == sorted(ids)
    aside = duckdb.sql(f"select row_id from '{folder}/set-aside/unplanned-2.parquet'").fetchall()
    assert {row[0] for row in aside} == before - set(ids)
    shown = capsys.readouterr().err
    assert "the grid changed since the last start: vectors.v.token" in shown
    assert f"{len(aside):,} earlier rows are no longer in the plan" in shown.replace("\n", " ")


def test_a_grid_that_was_narrowed_and_is_put_back_computes_nothing_anew(
    grid: Path, first: Outcome, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = "row_id, text, logit_diff, vector_sha256, run_session"
    before = [row for row in rows_of(first.folder, f"{columns}, status") if row[-1] == "ok"]
    configs = duckdb.sql(f"from '{first.folder}/configs.parquet' order by all").fetchall()
    narrow = run(written(grid.parent, "multipliers: [-1, 1]", "multipliers: 1"))
    assert narrow.planned < first.planned
    # what failed is not taken back: it is computed again, and fails as it did
    again = run(written(grid.parent))
    assert [row for row in rows_of(again.folder, f"{columns}, status") if row[-1] == "ok"] == before
    assert (again.good, again.errors) == (first.good, first.errors)
    assert duckdb.sql(f"from '{first.folder}/configs.parquet' order by all").fetchall() == configs
    (taken,) = [event for event in event_records(again.folder) if event["event"] == "taken_back"]
    assert f"{taken['rows']:,} rows are planned again" in capsys.readouterr().err
    assert checked(again.folder, grid) == checked(first.folder, grid)
    # and so it goes, with the copies that are in set-aside/ by then
    run(written(grid.parent, "multipliers: [-1, 1]", "multipliers: -1"))
    last = run(written(grid.parent))
    assert [row for row in rows_of(last.folder, f"{columns}, status") if row[-1] == "ok"] == before


def test_what_was_set_aside_and_is_damaged_is_computed_anew(grid: Path, first: Outcome) -> None:
    before = rows_of(first.folder, "row_id, text, logit_diff")
    run(written(grid.parent, "multipliers: [-1, 1]", "multipliers: 1"))
    (aside,) = (first.folder / "set-aside").glob("unplanned-*.parquet")
    content = bytearray(aside.read_bytes())
    content[len(content) // 2] ^= 0xFF
    aside.write_bytes(content)
    again = run(written(grid.parent))
    assert "taken_back" not in events(again.folder)
    assert rows_of(again.folder, "row_id, text, logit_diff") == before


def test_engine_settings_do_not_change_the_rows(grid: Path) -> None:
    ids = planned(grid)
    text = (
        grid.read_text()
        + "engine: {tensor_parallel_size: 2, replicas: 3, max_num_seqs: 7, enforce_eager: true}\n"
    )
    grid.write_text(text)
    assert planned(grid) == ids


def test_an_engine_that_dies_is_started_again_and_nothing_is_lost(grid: Path, whole: Outcome) -> None:
    outcome = run(grid, dies_after=2500)
    same = "row_id, status, logit_diff, text"
    assert rows_of(outcome.folder, same) == rows_of(whole.folder, same)
    assert 1 <= events(outcome.folder).count("engine_died") <= 3


def made_folder(grid: Path, name: str) -> Path:
    folder = grid.parent / name
    folder.mkdir()
    return folder


def test_an_engine_that_dies_for_good_ends_the_run_with_what_is_done(
    grid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run(grid, dies_after=300)
    assert outcome.exit_code == INCOMPLETE
    assert 0 < outcome.good + outcome.errors < outcome.planned
    assert events(outcome.folder).count("engine_died") == 4
    assert "the engine died" in capsys.readouterr().err
    assert run(grid).good > outcome.good


def test_two_runs_on_one_folder_are_refused(grid: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=run, args=(grid, None, 0.2))
    process.start()
    try:
        folder = grid.parent / "runs" / "try"
        wait_for(lambda: folder.is_dir() and status(folder).live)
        with pytest.raises(StoreError, match=str(process.pid)):
            run(grid)
        # nor is its folder moved away under it
        with pytest.raises(StoreError, match=str(process.pid)):
            run(grid, fresh=True)
        assert folder.is_dir()
    finally:
        process.kill()
        process.join()


def wait_for(true: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(StoreError):
            if true():
                return
        time.sleep(0.02)
    raise AssertionError("it never came to be")


def test_the_first_interrupt_finishes_what_is_under_way(grid: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=lambda: answers.put(run(grid, None, 0.05)))
    process.start()
    folder = grid.parent / "runs" / "try"
    wait_for(lambda: "extract" in events(folder) if (folder / "events.jsonl").exists() else False)
    # written once the vectors are there, right before the rows begin
    hashed = f"select count(*) from '{folder}/configs.parquet' where vector_sha256 <> ''"
    wait_for(lambda: duckdb.sql(hashed).fetchall()[0][0] > 0)
    time.sleep(0.4)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    outcome = answers.get(timeout=120)
    process.join()
    assert outcome.exit_code == INTERRUPTED
    assert 0 < outcome.good < outcome.planned
    # nothing was handed in after it, and nothing that was under way is missing
    found = status(folder)
    assert (found.done, found.errors) == (outcome.good, outcome.errors)
    assert run(grid).good > outcome.good


def test_data_that_changes_while_the_model_loads_is_not_taken_for_what_was_planned(tmp_path: Path) -> None:
    grid = written(tmp_path)

    def loads_slowly(plan: Plan, spec: EngineSpec, *_: object) -> FakeEngine:
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS[:5])))
        return fake.fake_engine(plan)

    with pytest.raises(DataError, match="changed while the run went on"):
        run_grid(grid, load=loads_slowly)


def test_the_same_command_keeps_the_vectors_hashes(grid: Path, first: Outcome) -> None:
    folder = first.folder
    before = duckdb.sql(f"select config_id, vector_sha256 from '{folder}/configs.parquet'").fetchall()
    run(grid)
    after = duckdb.sql(f"select config_id, vector_sha256 from '{folder}/configs.parquet'").fetchall()
    assert sorted(after) == sorted(before)
    assert {sha256 for _, sha256 in after if sha256}
