"""A damaged shard is never read: not by SQL, not by a scorer, not by an export; and each is verified once."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.store.makers import row, row_id, text_row, write_plan
from vsteer.errors import StoreError
from vsteer.scoring.scorers import PLAIN
from vsteer.scoring.stored_texts import score_texts
from vsteer.store import shards as sh
from vsteer.store import views
from vsteer.store.events import read_events
from vsteer.store.schema import CONFIGS_SCHEMA, PROMPTS_SCHEMA
from vsteer.store.sound import NOTE, faults_of_tables, sound_shards
from vsteer.store.status import status
from vsteer.store.store import open_store
from vsteer.store.views import rows_sql

FLIPS = 150
TABLES = {"configs.parquet": CONFIGS_SCHEMA, "prompts.parquet": PROMPTS_SCHEMA}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty rows in three shards, beside the empty one that a run begins with."""
    folder = tmp_path_factory.mktemp("made") / "run"
    with open_store(folder, shard_rows=20) as store:
        write_plan(store, 60)
        for number in range(60):
            store.append(text_row(number) if number < 20 else row(number))
    return folder


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def rows(folder: Path) -> list[tuple[Any, ...]]:
    return list(duckdb.sql(f"select * from ({rows_sql(folder)}) order by row_id").fetchall())


def shard_of(folder: Path, number: int) -> Path:
    """The shard of the rows from 20 * number on; the first is the empty one."""
    return sh.list_shards(folder / "rows")[1 + number]


def without(folder: Path, number: int) -> list[tuple[Any, ...]]:
    ids = {row_id(20 * number + place) for place in range(20)}
    return [one for one in rows(folder) if one[0] not in ids]


def test_whatever_bit_is_flipped_no_row_is_read_from_the_shard(tmp_path: Path, made: Path) -> None:
    wanted = without(made, 1)
    bits = random.Random(7)
    for n in range(FLIPS):
        run = tmp_path / str(n)
        shutil.copytree(made, run)
        shard = shard_of(run, 1)
        flip(shard, bits.randrange(8 * shard.stat().st_size))
        assert rows(run) == wanted
        assert not shard.exists()


def test_it_is_set_aside_as_a_run_does_and_a_warning_says_so(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    shard = shard_of(run, 2)
    flip(shard, 4000)
    damaged = shard.read_bytes()
    assert rows(run) == without(made, 2)
    assert f"rows/{shard.name} is set aside as set-aside/{shard.name}" in caplog.text
    assert (run / "set-aside" / shard.name).read_bytes() == damaged
    assert read_events(run)[-1]["file"] == shard.name
    caplog.clear()
    assert rows(run) == without(made, 2)
    assert caplog.text == ""
    with open_store(run) as store:
        assert len(store.done().good) == 40


def test_while_the_run_goes_on_it_is_left_where_it_is_and_out(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    with open_store(run):
        shard = shard_of(run, 0)
        flip(shard, 4000)
        assert rows(run) == without(made, 0)
        assert f"rows/{shard.name} is left out" in caplog.text
        assert shard.exists()
        assert status(run).unreadable == (shard.name,)
        assert status(run).done == 40


def test_a_file_that_is_no_shard_is_not_read_either(tmp_path: Path, made: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    (run / "rows" / "mine.parquet").write_bytes(b"mine")
    assert rows(run) == rows(made)


def test_a_shard_is_verified_once_and_again_when_it_was_touched(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    read: list[str] = []
    crc_of = sh.crc_of

    def counted(path: Path) -> int:
        read.append(path.name)
        return crc_of(path)

    monkeypatch.setattr(sh, "crc_of", counted)
    shards = [shard.name for shard in sound_shards(run)]
    assert read == shards
    assert [shard.name for shard in sound_shards(run)] == read == shards
    flip(run / "rows" / shards[2], 4000)
    assert [shard.name for shard in sound_shards(run)] == [*shards[:2], shards[3]]
    assert read == [*shards, shards[2]]


def test_that_no_row_stands_twice_is_found_out_once_and_again_when_shards_come(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    (run / NOTE).unlink(missing_ok=True)
    looked: list[int] = []
    any_id_twice = views.any_id_twice

    def counted(shards: Sequence[Path]) -> bool:
        looked.append(len(shards))
        return any_id_twice(shards)

    monkeypatch.setattr(views, "any_id_twice", counted)
    wanted = rows(run)
    assert rows(run) == wanted
    assert looked == [4]
    # as two runs would leave it whose folder nobody could lock
    shard = shard_of(run, 1)
    shutil.copy(shard, shard.with_name(shard.name.replace("part-00000003", "part-00000009")))
    for _ in range(2):
        assert rows(run) == wanted
    assert looked == [4, 5, 5]


def test_a_table_that_is_a_link_is_verified_again_when_its_target_was_touched(
    tmp_path: Path, made: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    table, target = run / "configs.parquet", tmp_path / "elsewhere"
    table.rename(target)
    table.symlink_to(target)
    schemas = {table: CONFIGS_SCHEMA}
    assert faults_of_tables(run, schemas) == {table: None}
    flip(target, 4000)
    assert faults_of_tables(run, schemas) == {table: "its checksum is another's"}


@pytest.mark.parametrize("note", [b"", b"[1]", b'{"part-', b"\xff"])
def test_a_damaged_note_costs_another_verification_and_nothing_else(
    tmp_path: Path, made: Path, note: bytes
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    (run / NOTE).write_bytes(note)
    flip(shard_of(run, 1), 4000)
    assert rows(run) == without(made, 1)


def test_where_no_note_can_be_written_every_reader_verifies(tmp_path: Path, made: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    (run / NOTE).unlink(missing_ok=True)
    (run / NOTE).mkdir()
    assert rows(run) == rows(made)
    flip(shard_of(run, 1), 4000)
    assert rows(run) == without(made, 1)


def test_a_run_without_a_sound_shard_is_one_clear_error(tmp_path: Path, made: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    for shard in sh.list_shards(run / "rows"):
        flip(shard, 4000)
    with pytest.raises(StoreError, match="no shard"):
        rows(run)


def test_no_text_of_a_damaged_shard_is_scored(tmp_path: Path, made: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    assert score_texts(made, PLAIN["length"]).texts == 20
    flip(shard_of(run, 0), 4000)
    assert score_texts(run, PLAIN["length"]).texts == 0


def test_an_export_says_on_the_terminal_what_it_lacks(tmp_path: Path, made: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    flip(shard_of(run, 1), 4000)
    command = [sys.executable, "-m", "vsteer", "export", str(run), "--out", str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "is set aside as set-aside/" in done.stderr
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 40


def test_the_note_has_what_is_there_and_is_left_alone_while_nothing_changes(
    tmp_path: Path, made: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(made, run)
    for _ in range(2):
        sound_shards(run)
        for table, schema in TABLES.items():
            assert faults_of_tables(run, {run / table: schema}) == {run / table: None}
    written = (run / NOTE).stat().st_mtime_ns
    sound_shards(run)
    faults_of_tables(run, {run / "configs.parquet": TABLES["configs.parquet"]})
    assert (run / NOTE).stat().st_mtime_ns == written
    with open_store(run) as store:
        store.compact()
    (compacted,) = sound_shards(run)
    assert set(json.loads((run / NOTE).read_bytes())["files"]) == {
        f"rows/{compacted.name}",
        "configs.parquet",
        "prompts.parquet",
    }
