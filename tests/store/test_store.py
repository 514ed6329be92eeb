"""Opening, appending, flushing, going on: what a run folder keeps and whom it lets in."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.store.makers import error_row, numbers, row, row_id, stored, text_row, write_plan
from vsteer.errors import StoreError
from vsteer.store.events import read_events
from vsteer.store.ids import pack
from vsteer.store.lock import holder
from vsteer.store.records import RecordError
from vsteer.store.store import Store, open_store


def fill(folder: Path, first: int, last: int) -> None:
    with open_store(folder) as store:
        for number in range(first, last):
            store.append(row(number))


def test_rows_are_durable_after_a_flush_and_not_before(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.append(row(0))
        assert stored(tmp_path) == []
        store.flush()
        assert stored(tmp_path) == [(row_id(0), "ok", 1)]
        store.append(row(1))
    assert len(stored(tmp_path)) == 2


def test_a_shard_is_written_when_it_is_full(tmp_path: Path) -> None:
    with open_store(tmp_path, shard_rows=10) as store:
        for number in range(25):
            store.append(row(number))
        assert len(stored(tmp_path)) == 20
    assert stored(tmp_path) == sorted((row_id(number), "ok", 1) for number in range(25))


def test_unsteered_rows_can_be_read_without_the_others(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for number in range(20):
            store.append(row(number))
    counts = {"": 0, "sentiment": 0}
    for shard in (tmp_path / "rows").iterdir():
        metadata = pq.read_metadata(shard)
        column = [leaf.path for leaf in metadata.schema].index("vector")
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            if group.num_rows:  # a store begins with an empty shard
                found = group.column(column).statistics
                assert found.min == found.max
                counts[found.min] += group.num_rows
    # of each seven rows the last is a baseline
    assert counts == {"": 2, "sentiment": 18}


def test_rows_are_written_in_time_though_none_comes_after_them(tmp_path: Path) -> None:
    with open_store(tmp_path, shard_seconds=0.2) as store:
        store.append(row(0))
        deadline = time.monotonic() + 60
        while not stored(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert stored(tmp_path) == [(row_id(0), "ok", 1)]


def test_the_first_shards_come_soon_and_then_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    written = []
    with open_store(tmp_path) as store:
        # The clock's thread would write too, at a time of its own.
        store._closing.wait = lambda timeout=None: True  # type: ignore[method-assign]
        for number in range(700):
            now += 0.1
            store.append(row(number))
            written.append(len(list((tmp_path / "rows").iterdir())))
    at = [0.1 * n for n, (before, after) in enumerate(itertools.pairwise(written), 1) if after > before]
    assert at == pytest.approx([1, 3, 7, 15, 31, 51], abs=1)


def test_sql_answers_from_the_first_second(tmp_path: Path) -> None:
    with open_store(tmp_path):
        assert stored(tmp_path, "count(*)") == [(0,)]


def test_a_refused_record_takes_no_other_with_it(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.append(row(0))
        with pytest.raises(RecordError):
            store.append(row(1, layer="1"))
        store.append(row(2))
    assert stored(tmp_path, "row_id") == sorted([(row_id(0),), (row_id(2),)])


def test_rows_survive_an_exception_of_the_callers(tmp_path: Path) -> None:
    def interrupted() -> None:
        with open_store(tmp_path) as store:
            store.append(row(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(stored(tmp_path)) == 1
    assert holder(tmp_path) is None


def test_a_closed_store_takes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.close()
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store.append(row(0))


def append_all(store: Store, share: range) -> None:
    for number in share:
        store.append(row(number))


def test_threads_may_append_together(tmp_path: Path) -> None:
    with open_store(tmp_path, shard_rows=7) as store:
        shares = [range(start, 400, 4) for start in range(4)]
        threads = [threading.Thread(target=append_all, args=(store, share)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert stored(tmp_path) == sorted((row_id(number), "ok", 1) for number in range(400))


# What is done


def test_done_tells_good_rows_from_failed_ones(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        for record in (row(0), error_row(1), error_row(2), error_row(3), error_row(3, attempt=2)):
            store.append(record)
        store.flush()
        store.append(row(2, attempt=2))  # an error, then a good one
        store.append(error_row(0, attempt=2))  # a good one, then an error: the good one stays
    with open_store(tmp_path) as store:
        done = store.done()
        assert (numbers(done.good, 10), numbers(done.errors, 10)) == ([0, 2], [1, 3])
        assert done.attempts(pack([row_id(number) for number in range(5)])).tolist() == [0, 1, 0, 2, 0]
        assert set(done.good) == {row_id(0), row_id(2)}


def test_ids_that_end_or_begin_with_zeros_are_told_apart(tmp_path: Path) -> None:
    ids = ["00" * 16, "00" * 15 + "01", "01" + "00" * 15, "0100" + "00" * 13 + "01", "ff" * 16]
    with open_store(tmp_path) as store:
        for one in ids[:-1]:
            store.append(row(row_id=one))
        store.flush()
        done = store.done()
    assert list(done.good) == sorted(ids[:-1])


def test_the_same_command_goes_on_where_it_stopped(tmp_path: Path) -> None:
    fill(tmp_path, 0, 30)
    with open_store(tmp_path) as store:
        done = set(store.done().good)
        for number in range(50):
            if row_id(number) not in done:
                store.append(row(number, run_session=store.session))
    rows = stored(tmp_path, "row_id, run_session")
    assert rows == sorted((row_id(n), 1 if n < 30 else 2) for n in range(50))


def test_sessions_are_counted_and_are_in_events(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        with open_store(tmp_path) as store:
            assert store.session == expected
            store.event("engine_restart", reason="out of memory")
    found = [(event["event"], event["session"]) for event in read_events(tmp_path)]
    assert found == [
        ("start", 1),
        ("engine_restart", 1),
        ("resume", 2),
        ("engine_restart", 2),
        ("resume", 3),
        ("engine_restart", 3),
    ]
    assert read_events(tmp_path)[1]["reason"] == "out of memory"


def test_an_event_that_a_kill_cut_spoils_no_other(tmp_path: Path) -> None:
    with open_store(tmp_path):
        pass
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "comp')
    assert [event["event"] for event in read_events(tmp_path)] == ["start"]
    with open_store(tmp_path) as store:
        assert store.session == 2
    assert [event["event"] for event in read_events(tmp_path)] == ["start", "unreadable", "resume"]
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in (lines[0], lines[2])] == ["start", "resume"]


# The manifest


def test_the_plan_is_written_and_found_again(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        assert store.manifest is None
        write_plan(store, 28)
    with open_store(tmp_path) as store:
        assert store.manifest is not None
        wanted = {"schema_version": 1, "name": "test", "rows": 28, "configs": 14, "prompts": 2}
        assert store.manifest.items() >= wanted.items()
    assert json.loads((tmp_path / "manifest.json").read_text()).items() >= wanted.items()


@pytest.mark.parametrize(
    "content",
    [
        "",
        '{"schema_version": 1, "rows',
        "[1, 2]",
        '{"name": "x"}',
        '{"schema_version": "1", "rows": 3}',
        "\udcff",
    ],
)
def test_a_damaged_manifest_is_set_aside_and_rows_stay(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, 0, 3)
    (tmp_path / "manifest.json").write_text(content, errors="surrogateescape")
    before = sorted((tmp_path / "rows").glob("*.parquet"))
    with open_store(tmp_path) as store:
        assert store.manifest is None
    assert "manifest.json is set aside" in caplog.text
    assert sorted((tmp_path / "rows").glob("*.parquet")) == before
    (kept,) = (tmp_path / "set-aside").glob("*manifest*")
    assert kept.read_text(errors="surrogateescape") == content


def test_a_manifest_of_a_newer_vsteer_stops_everything(tmp_path: Path) -> None:
    fill(tmp_path, 0, 3)
    (tmp_path / "manifest.json").write_text('{"schema_version": 2, "rows": 3}')
    before = sorted(tmp_path.rglob("*.parquet"))
    with pytest.raises(StoreError, match="a newer vsteer: its schema is version 2"):
        open_store(tmp_path)
    assert sorted(tmp_path.rglob("*.parquet")) == before
    assert holder(tmp_path) is None


# One writer


def test_a_second_run_on_a_folder_is_refused_with_who_has_it(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        with pytest.raises(StoreError, match=f"process {os.getpid()} on {socket.gethostname()}"):
            open_store(tmp_path)
        store.append(row(0))
    assert len(stored(tmp_path)) == 1
    open_store(tmp_path).close()


def test_a_second_process_is_refused_too(tmp_path: Path) -> None:
    code = "import pathlib, sys; from vsteer.store.store import open_store as o; o(pathlib.Path(sys.argv[1]))"
    with open_store(tmp_path):
        second = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
    assert second.returncode != 0
    assert f"in use by process {os.getpid()}" in second.stderr


def _wait(folder: Path, reached: str, until: str) -> None:
    (folder / reached).touch()
    while not (folder / until).exists():
        time.sleep(0.01)


def test_a_forked_engine_does_not_keep_the_folder(tmp_path: Path) -> None:
    """An engine that outlives a killed run would otherwise hold the lock of the next one."""
    run = tmp_path / "run"
    store = open_store(run)
    child = multiprocessing.get_context("fork").Process(target=_wait, args=(tmp_path, "forked", "end"))
    child.start()
    try:
        while not (tmp_path / "forked").exists():
            time.sleep(0.01)
        assert holder(run) is not None  # the child's closing took nothing from us
        store.close()
        open_store(run).close()
    finally:
        (tmp_path / "end").touch()
        child.join()


def test_looking_at_a_run_never_keeps_one_from_starting(tmp_path: Path) -> None:
    open_store(tmp_path).close()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            holder(tmp_path)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            open_store(tmp_path).close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_who_holds_a_folder_is_known_while_it_lasts(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with open_store(tmp_path):
        found = holder(tmp_path)
        assert found is not None
        assert (found.pid, found.host) == (os.getpid(), socket.gethostname())
    assert holder(tmp_path) is None


# What doesn't belong


def spoil(folder: Path) -> dict[str, str]:
    """Put one of each kind of bad file into rows/: name -> why it is set aside."""
    rows = folder / "rows"
    shard = only_full_shard(folder)
    good = shard.read_bytes()
    crc = shard.name[-17:]
    torn, empty, zeros, old, damaged, other = (f"part-0000009{n}{crc}" for n in range(6))
    (rows / torn).write_bytes(good[: len(good) // 2])
    (rows / empty).touch()
    (rows / zeros).write_bytes(b"\0" * len(good))
    (rows / old).symlink_to(shard)
    (rows / damaged).write_bytes(good[:400] + b"#" * 8 + good[408:])
    pq.write_table(pa.table({"row_id": [row_id(80)]}), rows / other)
    content = (rows / other).read_bytes()
    foreign = f"part-00000096-{zlib.crc32(content):08x}.parquet"
    (rows / foreign).write_bytes(content)
    (rows / "notes.txt").write_text("mine")
    pq.write_table(pa.table({"x": [1]}), rows / "mine.parquet")
    (rows / "folder.parquet").mkdir()
    not_ours = dict.fromkeys(
        [old, "notes.txt", "mine.parquet", "folder.parquet"], "it is not a file of vsteer's"
    )
    not_written = dict.fromkeys([torn, zeros, damaged, other], "its bytes are not those that were written")
    return {empty: "it is empty", foreign: "it has other columns", **not_ours, **not_written}


def only_full_shard(folder: Path) -> Path:
    (shard,) = (path for path in (folder / "rows").iterdir() if path.name.startswith("part-00000002"))
    return shard


def test_bad_files_are_set_aside_with_a_warning_and_never_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, 0, 40)
    bad = spoil(tmp_path)
    contents = {name: (tmp_path / "rows" / name) for name in bad}
    kept = {name: path.read_bytes() for name, path in contents.items() if path.is_file()}
    with caplog.at_level(logging.WARNING), open_store(tmp_path) as store:
        assert {moved.name for moved in store.set_aside} == set(bad)
        for moved in store.set_aside:
            assert moved.why.startswith(bad[moved.name])
        assert numbers(store.done().good, 100) == list(range(40))
    assert all(f"rows/{name} is set aside" in caplog.text for name in bad)
    assert {event["file"] for event in read_events(tmp_path) if event["event"] == "set_aside"} == set(bad)
    assert {name: (tmp_path / "set-aside" / name).read_bytes() for name in kept} == kept
    assert stored(tmp_path) == sorted((row_id(number), "ok", 1) for number in range(40))


def test_a_second_bad_file_of_a_name_replaces_no_other(tmp_path: Path) -> None:
    for content in ("one", "two", "three"):
        open_store(tmp_path).close()
        (tmp_path / "rows" / "notes.txt").write_text(content)
    open_store(tmp_path).close()
    assert sorted(file.read_text() for file in (tmp_path / "set-aside").iterdir()) == ["one", "three", "two"]


def test_a_shard_torn_anywhere_is_found(tmp_path: Path) -> None:
    """Also in a header or a statistic, which Parquet's own checksums leave out."""
    fill(tmp_path, 0, 40)
    shard = only_full_shard(tmp_path)
    good = shard.read_bytes()
    for place in range(0, len(good), max(1, len(good) // 40)):
        shard.write_bytes(good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :])
        with open_store(tmp_path) as store:
            assert [moved.name for moved in store.set_aside] == [shard.name]


def test_leftover_temporary_files_are_removed(tmp_path: Path) -> None:
    fill(tmp_path, 0, 3)
    (tmp_path / "rows" / ".part-00000009-00000000.parquet.tmp").write_bytes(b"half")
    with open_store(tmp_path) as store:
        assert store.set_aside == []
    assert not list((tmp_path / "rows").glob(".*"))


def test_lost_rows_are_computed_again_and_no_number_is_used_twice(tmp_path: Path) -> None:
    with open_store(tmp_path, shard_rows=10) as store:
        for number in range(40):
            store.append(text_row(number))
    last = max((tmp_path / "rows").iterdir())
    last.write_bytes(last.read_bytes()[:-10])
    with open_store(tmp_path) as store:
        assert len(store.done().good) == 30
        resume(store, 40)
    assert stored(tmp_path) == sorted((row_id(number), "ok", 1) for number in range(40))


def resume(store: Store, planned: int) -> None:
    done = set(store.done().good)
    for number in range(planned):
        if row_id(number) not in done:
            store.append(text_row(number))
