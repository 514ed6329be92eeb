"""Scoring stored rows: only what is new, once, beside the rows; killed, repeated, and from the terminal."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from tests.store import makers
from vsteer.cli import main
from vsteer.errors import StoreError
from vsteer.results.views import connect_runs
from vsteer.scoring.score_file import ScoreFile
from vsteer.scoring.scorers import PLAIN, Scorer
from vsteer.scoring.stored_texts import score_texts
from vsteer.store.store import open_store


def add_texts(folder: Path, *numbers: int, **changes: Any) -> Path:
    with open_store(folder) as store:
        prompts = [makers.prompt(n, choices=None, matching=None, kind="open_ended") for n in range(30)]
        store.write_plan({"name": "t"}, map(makers.config, range(14)), prompts, 400)
        for n in numbers:
            store.append(makers.text_row(n, **{"text": "word " * n, **changes}))
    return folder


def words(folder: Path) -> dict[str, float]:
    found = connect_runs([folder]).execute("select row_id, value from scores where name = 'words'").fetchall()
    assert len(found) == len(dict(found))
    return dict(found)


def expected(*numbers: int) -> dict[str, float]:
    return {makers.row_id(n): n for n in numbers}


def score(folder: Path) -> tuple[int, int, int]:
    done = score_texts(folder, PLAIN["length"])
    return done.texts, done.standing, done.scored


def test_only_new_rows_are_scored(tmp_path: Path) -> None:
    run = add_texts(tmp_path / "run", 1, 2, 3)
    with open_store(run) as store:
        store.append(makers.row(7))  # a choice
        store.append(makers.error_row(8, kind="open_ended"))
    assert score(run) == (3, 0, 3)
    assert score(run) == (3, 3, 0)
    add_texts(run, 4, 5)
    assert score(run) == (5, 3, 2)
    assert words(run) == expected(1, 2, 3, 4, 5)


def test_a_row_that_was_tried_again_counts_once_and_compaction_changes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with open_store(run) as store:
        store.append(makers.error_row(2, kind="open_ended"))
    add_texts(run, 1, 2, attempt=2)
    assert score(run) == (2, 0, 2)
    with open_store(run) as store:
        store.compact()
    assert score(run) == (2, 2, 0)
    assert words(run) == expected(1, 2)


def test_a_text_that_was_computed_again_is_scored_again(tmp_path: Path) -> None:
    run = add_texts(tmp_path / "run", 1, 2)
    score(run)
    for shard in run.glob("rows/*.parquet"):
        shard.unlink()
    add_texts(run, 1)
    add_texts(run, 2, text="other words now", finished_at=makers.START + timedelta(days=1))
    # The old score is not shown even before.
    assert words(run) == expected(1)
    assert score(run) == (2, 1, 1)
    assert words(run) == {makers.row_id(1): 1, makers.row_id(2): 3}
    (file,) = run.glob("scores/length-*.parquet")
    assert pq.read_metadata(file).num_rows == 2 * 3


def test_files_say_what_their_scores_are(tmp_path: Path) -> None:
    run = add_texts(tmp_path / "run", 1)
    score(run)
    (file,) = run.glob("scores/*.parquet")
    schema = pq.read_schema(file)
    assert json.loads(schema.metadata[b"scorer"])["scorer"] == "length"
    assert all(len(field.metadata[b"about"]) > 10 for field in schema)
    assert file.name == f"length-{PLAIN['length'].hash}.parquet"


def test_two_versions_of_a_scorer_do_not_mix(tmp_path: Path) -> None:
    run = add_texts(tmp_path / "run", 1)
    one = PLAIN["length"]
    score_texts(run, one)
    score_texts(run, Scorer(one.name, one.about, one.version + 1, one.score))
    assert len(list(run.glob("scores/length-*.parquet"))) == 2
    found = connect_runs([run]).execute("select count(distinct scorer_hash), count(*) from scores").fetchall()
    assert found == [(2, 6)]


def slowly(folder: Path) -> None:
    """Save after each row."""
    one = PLAIN["length"]
    with ScoreFile(folder, one.name, one.hash, one.identity) as file:
        file.save_seconds = 0.0
        for output in file.unscored("token_ids"):
            file.add(output, one.score(output.text, output.token_ids))
            time.sleep(0.002)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_again_and_again_every_text_has_its_score_once(tmp_path: Path) -> None:
    run = add_texts(tmp_path / "run", *range(1, 301))
    stood: list[int] = []
    # on a busy machine the first may all be too early
    while len(stood) < 6 or (not stood[-1] and len(stood) < 60):
        process = multiprocessing.get_context("fork").Process(target=slowly, args=(run,))
        process.start()
        process.join(0.15 + 0.07 * len(stood))
        process.kill()
        process.join()
        files = list(run.glob("scores/length-*.parquet"))
        stood.append(pq.read_metadata(files[0]).num_rows // 3 if files else 0)
    assert stood == sorted(stood)
    texts, standing, new = score(run)
    assert (texts, standing + new) == (300, 300)
    assert standing == stood[-1] > 0
    assert words(run) == expected(*range(1, 301))


def test_two_scorings_of_one_run_are_refused(tmp_path: Path) -> None:
    run = add_texts(tmp_path / "run", 1)
    one = PLAIN["length"]
    with ScoreFile(run, one.name, one.hash, one.identity), pytest.raises(StoreError, match="in use"):
        score(run)


def vsteer(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["score", *arguments])


def test_the_command_scores_with_the_plain_scorers_and_says_so(tmp_path: Path) -> None:
    run = add_texts(tmp_path / "run", 1, 2)
    done = vsteer(str(run), "--json")
    assert done.exit_code == 0, done.output
    scored = {one["scorer"]: (one["texts"], one["scored"]) for one in json.loads(done.stdout)}
    assert scored == dict.fromkeys(("refusal", "repetition", "length", "characters"), (2, 2))
    again = vsteer(str(run), "--scorer", "length")
    assert again.stdout.startswith("length: 0 of 2 texts scored, 2 were")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scorer", "lenght"], "no scorer is called 'lenght'"),
        (["--scorer", "judge"], "a judge needs a rubric and a model"),
        (
            ["--scorer", "judge", "--rubric", "no-such", "--base-url", "http://x/v1", "--judge-model", "m"],
            "no rubric",
        ),
        (
            [
                "--scorer",
                "judge",
                "--rubric",
                "refusal",
                "--base-url",
                "http://u:pw@x/v1",
                "--judge-model",
                "m",
            ],
            "--base-url holds a password",
        ),
    ],
)
def test_mistakes_are_reported(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = vsteer(str(add_texts(tmp_path / "run", 1)), *arguments)
    assert done.exit_code in (1, 2)
    assert done.stderr.startswith(f"error: {message}")
    assert "pw" not in done.stderr.replace("password", "")


def test_a_folder_that_is_no_run_is_reported(tmp_path: Path) -> None:
    done = vsteer(str(tmp_path))
    assert (done.exit_code, done.stderr.splitlines()[0]) == (1, f"error: {tmp_path} is not a run's folder")


def test_a_damaged_file_of_scores_is_set_aside_and_its_texts_are_scored_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = add_texts(tmp_path / "run", 1, 2)
    score(run)
    (file,) = run.glob("scores/*.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    assert score(run) == (2, 0, 2)
    assert words(run) == expected(1, 2)
    assert f"scores/{file.name} is set aside as set-aside/{file.name}" in caplog.text
