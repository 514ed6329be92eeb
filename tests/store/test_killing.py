"""SIGKILL at any moment: afterwards the same command makes the run whole, each row once."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.store import victims
from tests.store.makers import error_row, planned, row, row_id, stored, text_row, write_plan
from vsteer.store.check import check
from vsteer.store.database import in_memory
from vsteer.store.status import status
from vsteer.store.store import open_store
from vsteer.store.views import rows_sql

# Forked from a process that has everything imported, so that a start costs milliseconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.store.victims", "pytest"])

PLANNED = 6_000  # more than the victims could write before their kills
KILLS = 32


def start(target: Any, *arguments: Any) -> BaseProcess:
    process = FORKS.Process(target=target, args=arguments)
    process.start()
    return process


def expected_rows() -> list[tuple[Any, ...]]:
    made = [victims.planned_row(number) for number in range(PLANNED)]
    return sorted((r["row_id"], "ok", r["text"], r["choice_logprobs"], r["multiplier"]) for r in made)


def shards(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("rows/*.parquet")}


@pytest.mark.long
def test_rows_outlive_kills_at_random_moments(tmp_path: Path) -> None:
    when = random.Random(4)
    kills, before = 0, 0
    run = tmp_path / "run"
    while kills < KILLS:
        stood = shards(run)
        victim = start(victims.run, run, PLANNED, 0.001)
        # every other one is killed among rows, however long the machine takes to the first
        while kills % 2 and victim.is_alive() and not shards(run) - stood:
            time.sleep(0.005)
        victim.join(when.uniform(0.0, 0.1) if kills % 2 else when.uniform(0.02, 0.22))
        victim.kill()
        victim.join()
        kills += victim.exitcode == -signal.SIGKILL
        if (run / "rows").is_dir():
            # There is none yet where the kill came right after the folder was made.
            now = len(set(stored(run, "row_id", "status = 'ok'"))) if shards(run) else 0
            assert now >= before, "a row that was durable is gone"
            before = now
    assert 0 < before < PLANNED
    for _ in range(2):  # once to make every row, once to retry those that failed at first
        victim = start(victims.run, run, PLANNED, 0)
        victim.join(60)
        assert victim.exitcode == 0
    columns = "row_id, status, text, choice_logprobs, multiplier"
    assert stored(run, columns) == expected_rows()
    assert [path.name[:8] for path in (run / "rows").iterdir()] == ["compact-"]
    assert check(run, planned(range(PLANNED))) == []
    assert not (run / "set-aside").exists()
    assert status(run).sessions >= 10


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six shards, with errors, retries and a compaction that is out of date."""
    folder = tmp_path_factory.mktemp("before")
    with open_store(folder, shard_rows=20) as store:
        write_plan(store, 100)
        for number in range(60):
            store.append(error_row(number) if number % 5 == 0 else row(number))
        store.compact()
        for number in range(0, 30, 5):
            store.append(text_row(number, attempt=2))
        for number in range(60, 100):
            store.append(row(number))
    return folder


def whole(folder: Path) -> list[tuple[Any, ...]]:
    """Every row once, as a reader sees them."""
    with in_memory() as database:
        query = f"select row_id, status, attempt, kind from ({rows_sql(folder)}) order by all"
        return list(database.sql(query).fetchall())


WHOLE = sorted(
    (
        row_id(n),
        "error" if n % 5 == 0 and 30 <= n < 60 else "ok",
        2 if n % 5 == 0 and n < 30 else 1,
        "open_ended" if n % 5 == 0 and n < 30 else "choice",
    )
    for n in range(100)
)


@pytest.mark.long
def test_a_compaction_killed_at_any_step_loses_and_doubles_nothing(tmp_path: Path, before: Path) -> None:
    standing_rows = len(stored(before))
    assert whole(before) == WHOLE
    assert standing_rows > 100  # six stand twice, as an error and as what came of it
    step, died = 0, True
    while died:
        step += 1
        folder = tmp_path / str(step)
        shutil.copytree(before, folder)
        victim = start(victims.compact_until, folder, step)
        victim.join(60)
        died = victim.exitcode == -signal.SIGKILL
        assert died or victim.exitcode == 0
        # As it was left, for whoever reads it
        assert whole(folder) == WHOLE, step
        assert (status(folder).done, status(folder).errors) == (94, 6), step
        if (folder / "rows").is_dir():
            assert len(stored(folder)) in (standing_rows, 100), step
        # And as the next start finds it
        with open_store(folder) as store:
            assert store.set_aside == [], step
            assert whole(folder) == WHOLE, step
            store.compact()
        assert stored(folder, "row_id, status, attempt, kind") == WHOLE, step
        assert sorted(path.name for path in folder.iterdir()) == [
            ".verified.json",
            "configs.parquet",
            "events.jsonl",
            "manifest.json",
            "prompts.parquet",
            "rows",
            "run.lock",
        ]
        shutil.rmtree(folder)
    assert step > 15  # each file that is dropped is a step, and each sync


def test_a_reader_never_sees_a_compaction_in_the_middle(tmp_path: Path) -> None:
    """DuckDB on the one glob while rows come and files change places: no row twice, and never fewer."""
    victim = start(victims.run_and_compact, tmp_path, 48)
    try:
        while not list(tmp_path.glob("rows/*.parquet")):
            assert victim.is_alive()
        seen, least, refused = 0, 0, 0
        with duckdb.connect() as database:
            while victim.is_alive():
                try:
                    every = f"select count(*), count(distinct row_id) from '{tmp_path}/rows/*.parquet'"
                    rows, ids = database.sql(every).fetchall()[0]
                    viewed = database.sql(f"select count(*) from ({rows_sql(tmp_path)})").fetchall()[0][0]
                except duckdb.IOException:  # a file went away between the list and the look
                    refused += 1
                    continue
                assert rows == ids
                assert viewed >= ids >= least
                least, seen = ids, seen + 1
        assert seen > 5
        assert refused < seen
    finally:
        victim.kill()
        victim.join()
    assert len(stored(tmp_path)) == 480
