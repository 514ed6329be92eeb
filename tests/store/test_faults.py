"""A disk that is full or read-only: one clear error, nothing lost, and it goes on once the disk is well.

On a real tmpfs where the sandbox lets us mount one (root, or a user namespace's); the same through a layer
that makes chosen calls fail, everywhere.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.store.makers import numbers, planned, row, row_id, stored, text_row, write_plan
from vsteer.errors import StoreError
from vsteer.store.check import check
from vsteer.store.events import read_events
from vsteer.store.files import disk_errors
from vsteer.store.lock import holder
from vsteer.store.status import status
from vsteer.store.store import Store, open_store

KIB = 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True, capture_output=True)


def fill_up(disk: Path) -> Path:
    """Take all the space that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * KIB)
    return filler


def append_until_refused(store: Store, first: int) -> tuple[int, StoreError]:
    """Append rows until one is refused: its number, and how."""
    for number in range(first, 100_000):
        try:
            store.append(row(number))
        except StoreError as error:
            return number, error
    raise AssertionError("nothing was refused")


def no_temporary_files(folder: Path) -> bool:
    return not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_a_full_disk_loses_nothing_and_the_same_call_goes_on(small_disk: Path) -> None:
    run = small_disk / "run"
    with open_store(run, shard_rows=10) as store:
        for number in range(20):
            store.append(row(number))
        filler = fill_up(small_disk)
        refused, error = append_until_refused(store, 20)
        assert "No space left on device" in error.message
        assert "free some space" in error.hint
        assert str(run / "rows") in error.message
        # Everything in the files is whole and readable.
        written = len(stored(run))
        assert written % 10 == 0
        assert no_temporary_files(run)
        with pytest.raises(StoreError, match="No space left"):
            store.append(row(refused))
        with pytest.raises(StoreError, match="No space left"):
            store.flush()
        with pytest.raises(StoreError, match="No space left"):
            store.close()
        assert holder(run) is not None
        filler.unlink()
        for number in range(refused, 40):
            store.append(row(number))
    assert stored(run) == sorted((row_id(number), "ok", 1) for number in range(40))


def test_a_compaction_without_room_leaves_the_shards(small_disk: Path) -> None:
    run = small_disk / "run"
    with open_store(run, shard_rows=4) as store:
        for number in range(24):
            store.append(text_row(number))
        store.flush()
        filler = fill_up(small_disk)
        with pytest.raises(StoreError, match="No space left"):
            store.compact()
        assert len(stored(run)) == 24
        assert sorted(path.name for path in run.iterdir()) == ["events.jsonl", "rows", "run.lock"]
        filler.unlink()
        made = store.compact()
    assert made is not None
    assert stored(run, "row_id, text") == sorted((row_id(n), "Où? 東京 🙂") for n in range(24))


def test_a_full_disk_at_every_step_of_a_new_run(small_disk: Path) -> None:
    """With a little more room each time: a clear error until it is enough, and then a whole run."""
    run = small_disk / "run"
    filler, messages = fill_up(small_disk), set[str]()
    for left in range(filler.stat().st_size // KIB, -1, -4):
        os.truncate(filler, left * KIB)
        try:
            with open_store(run) as store:
                write_plan(store, 30)
                done = set(store.done().good)
                for number in range(30):
                    if row_id(number) not in done:
                        store.append(row(number))
                store.compact()
        except StoreError as error:
            messages.add(error.message.rpartition(": ")[2])
            assert holder(run) is None
        else:
            break
    assert messages == {"No space left on device"}
    assert check(run, planned(range(30))) == []
    assert stored(run) == sorted((row_id(number), "ok", 1) for number in range(30))
    assert all(event["event"] != "unreadable" for event in read_events(run))


def test_a_read_only_disk_is_named_and_loses_nothing(small_disk: Path) -> None:
    run = small_disk / "run"
    with open_store(run, shard_rows=5) as store:
        for number in range(12):
            store.append(row(number))
    remount(small_disk, "ro")
    with pytest.raises(StoreError, match="Read-only file system") as refused:
        open_store(run)
    assert "make the folder writable" in refused.value.hint
    assert (status(run).done, status(run).live) == (12, False)
    remount(small_disk, "rw")
    with open_store(run) as store:
        assert numbers(store.done().good, 12) == list(range(12))


@pytest.mark.parametrize(
    ("doing", "says"),
    [("reading run/events.jsonl", "make it readable"), ("writing run/x", "make the folder")],
)
def test_what_may_not_be_read_has_another_hint_than_what_may_not_be_written(doing: str, says: str) -> None:
    with pytest.raises(StoreError, match="Permission denied") as refused, disk_errors(doing):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    assert says in refused.value.hint


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Not a directory"):
        open_store(tmp_path / "file" / "run")


def test_a_shard_is_synced_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[str] = []

    def sync(handle: int) -> None:
        did.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().name}")

    replace = os.replace

    def rename(old: Path, new: Path) -> None:
        did.append(f"rename {Path(old).name} {Path(new).name}")
        replace(old, new)

    with open_store(tmp_path) as store:
        store.append(row(0))
        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(os, "replace", rename)
        store.flush()
    (shard,) = (path.name for path in (tmp_path / "rows").iterdir() if "-00000002-" in path.name)
    assert did == [f"sync .{shard}.tmp", f"rename .{shard}.tmp {shard}", "sync rows"]


# The same without a disk of our own: chosen calls fail


CALLS = ("open", "fsync", "replace", "rename", "unlink", "mkdir")


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int, int], Callable[[], int]]]:
    """Make the nth call of an os function fail, once; what comes back counts the calls."""

    def install(name: str, nth: int, code: int) -> Callable[[], int]:
        real: Any = getattr(os, name)
        calls = 0

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise OSError(code, os.strerror(code))
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)
        return lambda: calls

    yield install
    monkeypatch.undo()


@pytest.mark.parametrize("name", [pytest.param("open", marks=pytest.mark.long), *CALLS[1:]])
def test_whichever_call_fails_nothing_is_lost_or_doubled(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, fail: Callable[..., Callable[[], int]]
) -> None:
    for nth in range(1, 100):
        run = tmp_path / str(nth)
        calls = fail(name, nth, errno.ENOSPC)
        failures = use(run)
        used = calls()
        monkeypatch.undo()
        assert failures == (1 if used >= nth else 0), (name, nth)
        assert stored(run) == sorted((row_id(number), "ok", 1) for number in range(25)), (name, nth)
        assert check(run, planned(range(25))) == [], (name, nth)
        assert no_temporary_files(run)
        if used < nth:
            return
    raise AssertionError("the calls don't end")


def use(run: Path) -> int:
    """Do each thing that a run does until it works; how many times the disk was in the way."""
    failures = 0

    def insist(what: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        nonlocal failures
        for _ in range(5):
            try:
                return what(*arguments, **options)
            except StoreError:
                failures += 1
        raise AssertionError("it never works")

    store: Store = insist(open_store, run, shard_rows=10)
    insist(write_plan, store, 25)
    for number in range(25):
        insist(store.append, row(number))
    insist(store.event, "stop")
    insist(store.compact)
    insist(store.close)
    return failures
