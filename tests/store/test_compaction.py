"""Compaction: each row once, in order, the best attempt, and the same values as before."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from tests.store.makers import error_row, planned, row, row_id, stored, text_row, write_plan
from vsteer.errors import StoreError
from vsteer.store import compaction
from vsteer.store.check import check
from vsteer.store.database import exact, in_memory, quoted
from vsteer.store.events import read_events
from vsteer.store.store import open_store
from vsteer.store.views import CONFIGS, rows_sql

MANY = 500


def fill(folder: Path, last: int = MANY, shard_rows: int = 64) -> None:
    with open_store(folder, shard_rows=shard_rows) as store:
        write_plan(store, last)
        for number in reversed(range(last)):
            store.append((row, text_row, error_row)[number % 3](number))


def everything(folder: Path) -> list[object]:
    with in_memory() as database:
        return list(database.sql(f"select * from ({rows_sql(folder)}) order by row_id").fetchall())


def test_the_values_are_the_same_and_in_order(tmp_path: Path) -> None:
    fill(tmp_path)
    before = everything(tmp_path)
    with open_store(tmp_path) as store:
        made = store.compact()
    assert made is not None
    # The empty shard of the beginning, seven full ones and the rest
    assert (made.rows, made.shards) == (MANY, 1 + 7 + 1)
    assert list((tmp_path / "rows").iterdir()) == [made.file]
    assert everything(tmp_path) == before
    keys = pq.read_table(made.file, columns=["vector", "layer", "multiplier", "prompt_id"]).to_pylist()
    order = [
        (k["vector"], -1 if k["layer"] is None else k["layer"], k["multiplier"], k["prompt_id"]) for k in keys
    ]
    assert order == sorted(order)


def test_the_best_attempt_of_each_row_stays(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for record in (
            error_row(0),
            row(0, attempt=2),  # an error, then a good one
            row(1, attempt=2),
            error_row(1, attempt=3),  # a good one, then an error
            error_row(2, attempt=2),
            error_row(2, attempt=1),  # errors in the wrong order
            row(3, attempt=1, logit_diff=1.0),
            row(3, attempt=2, logit_diff=2.0),  # two good ones: the later
            row(4),
            row(4),  # the same twice
        ):
            store.append(record)
            store.flush()
        wanted = [
            (row_id(0), "ok", 2, 1.0),
            (row_id(1), "ok", 2, 1.0),
            (row_id(2), "error", 2, None),
            (row_id(3), "ok", 2, 2.0),
            (row_id(4), "ok", 1, 1.0),
        ]
        with in_memory() as database:
            live = database.sql(
                f"select row_id, status, attempt, logit_diff from ({rows_sql(tmp_path)}) order by all"
            ).fetchall()
        assert live == sorted(wanted)
        store.compact()
    assert stored(tmp_path, "row_id, status, attempt, logit_diff") == sorted(wanted)


def test_a_compacted_run_is_left_as_it_is(tmp_path: Path) -> None:
    fill(tmp_path, 20)
    with open_store(tmp_path) as store:
        store.compact()
        (file,) = (tmp_path / "rows").iterdir()
        made = file.stat()
        assert store.compact() is None
    with open_store(tmp_path) as store:
        assert store.compact() is None
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert [event["event"] for event in read_events(tmp_path)].count("compact") == 1


def test_more_rows_than_a_caller_waits_for_are_left_as_they_are(tmp_path: Path) -> None:
    fill(tmp_path, 20)
    with open_store(tmp_path) as store:
        before = sorted((tmp_path / "rows").iterdir())
        assert store.compact(most=19) is None
        assert sorted((tmp_path / "rows").iterdir()) == before
        assert store.compact(most=20) is not None


def test_a_run_without_rows_has_nothing_to_compact(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        assert store.compact() is None
    assert stored(tmp_path) == []


def test_rows_that_come_later_are_compacted_with_the_rest(tmp_path: Path) -> None:
    fill(tmp_path, 20)
    for number in (20, 21):
        with open_store(tmp_path) as store:
            store.compact()
            store.append(row(number))
    with open_store(tmp_path) as store:
        store.append(row(22))
        made = store.compact()
    assert made is not None
    assert made.rows == 23
    assert stored(tmp_path, "row_id") == sorted((row_id(number),) for number in range(23))
    findings = check(tmp_path, planned(range(20)))
    assert [(finding.what, finding.count) for finding in findings if finding.what == "unplanned"] == [
        ("unplanned", 3)
    ]


def test_a_shard_that_was_damaged_meanwhile_stops_it(tmp_path: Path) -> None:
    with open_store(tmp_path, shard_rows=10) as store:
        for number in range(30):
            store.append(row(number))
        shard = max((tmp_path / "rows").iterdir())
        content = shard.read_bytes()
        shard.write_bytes(content[:500] + b"#" + content[501:])
        before = sorted(path.name for path in (tmp_path / "rows").iterdir())
        with pytest.raises(StoreError, match="was damaged while the run went on"):
            store.compact()
        # What was in memory is written all the same.
        assert [name for name in before if not (tmp_path / "rows" / name).exists()] == []
    with open_store(tmp_path) as store:
        assert [moved.name for moved in store.set_aside] == [shard.name]
        assert len(store.done().good) == 20


def test_shards_come_back_where_what_replaced_them_is_damaged(tmp_path: Path) -> None:
    """A kill between the swap and the drop, and then the disk spoils the new file."""
    fill(tmp_path, 20)
    shutil.copytree(tmp_path / "rows", tmp_path / "rows.old")
    with open_store(tmp_path / "other") as store:
        for number in range(20):
            store.append(row(number))
        made = store.compact()
    assert made is not None
    shutil.rmtree(tmp_path / "rows")
    (tmp_path / "rows").mkdir()
    heir = tmp_path / "rows" / made.file.name.replace("-00000003-", "-00000009-")
    heir.write_bytes(made.file.read_bytes()[:-1])
    with open_store(tmp_path) as store:
        assert [moved.name for moved in store.set_aside] == [heir.name]
        done = store.done()
        assert len(done.good) + len(done.errors) == 20
    assert not (tmp_path / "rows.old").exists()
    assert len(stored(tmp_path)) == 20


def test_a_strangers_file_in_rows_is_not_deleted_with_the_shards(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.append(row(0))
        (tmp_path / "rows" / "thoughts.txt").write_text("mine")
        store.compact()
        assert [moved.name for moved in store.set_aside] == ["thoughts.txt"]
    assert (tmp_path / "set-aside" / "thoughts.txt").read_text() == "mine"
    assert len(stored(tmp_path)) == 1


def test_row_groups_are_small_enough_to_skip_and_to_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "ROW_GROUP", 2048)
    monkeypatch.setattr(compaction, "BATCH", 2048)
    with open_store(tmp_path) as store:
        for number in range(5000):
            store.append(row(number))
        made = store.compact()
    assert made is not None
    metadata = pq.read_metadata(made.file)
    sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    assert sizes == [2048, 2048, 904]
    column = pq.read_schema(made.file).names.index("layer")
    ranges = [metadata.row_group(n).column(column).statistics for n in range(3)]
    assert all(one.has_min_max for one in ranges)
    with duckdb.connect() as database:
        query = f"select distinct compression from parquet_metadata('{made.file}')"
        assert database.sql(query).fetchall() == [("ZSTD",)]


def test_long_rows_make_smaller_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "ROW_GROUP_BYTES", 2048 * 1000)
    monkeypatch.setattr(compaction, "BATCH", 2048)
    with open_store(tmp_path) as store:
        for number in range(5000):
            store.append(text_row(number, text=f"{row_id(number) * 20}"))
        made = store.compact()
    assert made is not None
    assert pq.read_metadata(made.file).row_group(0).num_rows == 2048


@pytest.mark.parametrize("name", ["it's", "a[1]", "what?", "a*b", "ü ", '"x"'])
def test_a_run_may_have_any_name(tmp_path: Path, name: str) -> None:
    run = tmp_path / name
    with open_store(run) as store:
        write_plan(store, 2)
        store.append(row(0))
        store.append(error_row(1))
        store.compact()
        store.append(row(1, attempt=2))
        store.flush()
        with in_memory() as database:
            configs = f"read_parquet({quoted(exact(run / CONFIGS))})"
            both = f"select count(*) from ({rows_sql(run)}) join {configs} using (config_id)"
            assert database.sql(both).fetchall() == [(2,)]
        assert check(run, planned(range(2)))[0].what == "superseded"
        store.compact()
    assert check(run, planned(range(2))) == []


def test_where_memory_is_too_little_more_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(tmp_path) as store:
        for number in range(3000):
            store.append(row(number))
        store.flush()
        before = stored(tmp_path)
        monkeypatch.setattr(compaction, "MOST_MIB", 1)
        with pytest.raises(StoreError, match="sorting the rows failed"):
            store.compact()
        assert stored(tmp_path) == before
        monkeypatch.setattr(compaction, "MOST_MIB", 32)
        store.compact()
    assert stored(tmp_path) == before
    (shard,) = (tmp_path / "rows").iterdir()
    assert shard.name.startswith("compact-")
    assert not (tmp_path / "rows.new").exists()


def test_a_file_that_a_reader_has_open_on_nfs_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the name of a deleted file changes until it is closed, and its folder can't be removed."""
    unlink = Path.unlink
    opened: list[Path] = []

    def as_on_nfs(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "rows.old" and not opened:
            opened.append(path.rename(path.with_name(".nfs000000000001")))
        else:
            unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", as_on_nfs)
    with open_store(tmp_path) as store:
        write_plan(store, 3)
        for number in range(3):
            store.append(row(number))
        store.flush()
        assert store.compact() is not None
        assert opened[0].exists()
        assert [found[0] for found in stored(tmp_path)] == sorted(map(row_id, range(3)))
    # the reader is done
    unlink(opened[0])
    with open_store(tmp_path) as store:
        assert store.set_aside == []
    assert not (tmp_path / "rows.old").exists()
    assert check(tmp_path, planned(range(3))) == []
