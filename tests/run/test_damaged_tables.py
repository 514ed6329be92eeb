"""Damaged tables of a run: the next start makes them anew and the same, and readers go on without them."""

from __future__ import annotations

import os
import random
import shutil
from datetime import datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from tests.run import fake
from vsteer.analysis.statistics import bring_up_to_date
from vsteer.errors import StoreError
from vsteer.grid.spec import read_grid
from vsteer.results.views import connect_runs
from vsteer.run.folder import run_plans
from vsteer.run.start import Outcome, run_grid
from vsteer.store.events import read_events
from vsteer.store.sound import fault_of_table

pytestmark = pytest.mark.long

GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors: {v: {data: sentiment, token: last}}
grid: [{vector: v, layers: [1, 4], multipliers: [-1, 1]}]
evaluations:
  - {kind: choice, data: sentiment, limit: 6}
  - {kind: open_ended, name: open, data: sentiment, limit: 3, max_tokens: 4}
"""
TABLES = (
    "vectors/norms.parquet",
    "statistics/intervals.parquet",
    "statistics/peaks.parquet",
    "scores/perplexity-*.parquet",
    "configs.parquet",
    "prompts.parquet",
)


def start(folder: Path) -> Outcome:
    return run_grid(folder / "grid.yaml", derive=bring_up_to_date, load=fake.load())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "grid.yaml").write_text(GRID)
    start(folder)
    return folder


@pytest.mark.parametrize("cut", ["emptied", "halved", "overwritten"])
@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_table_is_made_anew(tmp_path: Path, made: Path, name: str, cut: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    (table,) = (folder / "runs" / "try").glob(name)
    before, content = contents(table), table.read_bytes()
    table.write_bytes(
        {
            "emptied": b"",
            "halved": content[: len(content) // 2],
            "overwritten": content[:4] + b"\0" * (len(content) - 4),
        }[cut]
    )
    good = start(folder).good
    assert contents(table) == before
    assert good == start(made).good
    assert not [event for event in read_events(folder / "runs" / "try") if event["event"] == "no_statistics"]


def contents(table: Path) -> list[str]:
    return sorted(map(repr, pq.read_table(table).to_pylist()))


@pytest.mark.parametrize(
    ("name", "view"), [(TABLES[0], "norms"), (TABLES[1], "intervals"), (TABLES[3], "scores")]
)
def test_readers_go_on_without_a_damaged_table(
    tmp_path: Path, made: Path, name: str, view: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(shutil.copytree(made / "runs" / "try", tmp_path / "run"))
    (table,) = run.glob(name)
    os.truncate(table, table.stat().st_size // 2)
    with connect_runs([run]) as database:
        assert database.execute(f"select count(*) from {view}").fetchall() == [(0,)]
        assert database.execute("select count(*) > 0 from effects").fetchall() == [(True,)]
    assert ("is set aside as set-aside/" in caplog.text) == (view in ("scores", "norms"))


@pytest.mark.parametrize("name", ["configs.parquet", "prompts.parquet"])
def test_readers_refuse_a_run_whose_own_tables_are_damaged(tmp_path: Path, made: Path, name: str) -> None:
    run = Path(shutil.copytree(made / "runs" / "try", tmp_path / "run"))
    os.truncate(run / name, 100)
    with pytest.raises(StoreError, match=f"{name} is damaged"):
        connect_runs([run])


@pytest.mark.parametrize("name", TABLES)
def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path, made: Path, name: str) -> None:
    (table,) = (made / "runs" / "try").glob(name)
    content, copy, bits = table.read_bytes(), tmp_path / "table.parquet", random.Random(name)
    copy.write_bytes(content)
    wanted, found = answers(copy), 0
    for _ in range(100):
        bit, flipped = bits.randrange(8 * len(content)), bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        copy.write_bytes(flipped)
        if fault_of_table(copy):
            found += 1
        else:
            assert answers(copy) == wanted
    assert found > 95


def answers(table: Path) -> list[str]:
    return sorted(map(repr, duckdb.sql(f"select * from read_parquet('{table}')").fetchall()))


@pytest.mark.parametrize("cut", ["emptied", "flipped"])
def test_a_damaged_vector_steers_no_row_and_is_made_anew(tmp_path: Path, made: Path, cut: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    run = folder / "runs" / "try"
    (vector,) = run.glob("vectors/v-raw-????????????.safetensors")
    content = vector.read_bytes()
    flipped = bytearray(content)
    flipped[-3] ^= 1  # in the last direction's last number
    vector.write_bytes(b"" if cut == "emptied" else bytes(flipped))
    # so that there are rows to steer
    for shard in (run / "rows").glob("*.parquet"):
        shard.unlink()
    start(folder)
    assert vector.read_bytes() == content
    assert (run / "set-aside" / vector.name).exists()
    rows = (
        "select row_id, vector_sha256, logit_diff, text from read_parquet('{}/rows/*.parquet') order by all"
    )
    before = made / "runs" / "try"
    assert duckdb.sql(rows.format(run)).fetchall() == duckdb.sql(rows.format(before)).fetchall()


def test_a_damaged_manifest_ends_no_run_and_its_day_is_the_first_starts(tmp_path: Path, made: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    run = folder / "runs" / "try"
    first = read_events(run)[0]
    (run / "manifest.json").write_bytes(b"{")
    (plan,) = run_plans(read_grid(folder / "grid.yaml"))
    assert plan.today == datetime.fromisoformat(first["at"]).astimezone().date()
    assert start(folder).good == start(made).good
    assert (run / "set-aside" / "manifest.json").exists()


def test_rows_are_not_taken_back_from_a_damaged_file(tmp_path: Path, made: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    grid, run = folder / "grid.yaml", folder / "runs" / "try"
    grid.write_text(GRID.replace("[1, 4]", "[1]"))
    start(folder)
    (aside,) = (run / "set-aside").glob("unplanned-*.parquet")
    content = aside.read_bytes()
    place = content.rindex(b"vsteer-crc32=") - 100  # in the footer, which has no checksum of Parquet's own
    aside.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    grid.write_text(GRID)
    start(folder)
    assert not [event for event in read_events(run) if event["event"] == "taken_back"]
