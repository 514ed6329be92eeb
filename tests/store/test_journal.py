"""Rows that wait for their shard outlive a kill a second after they came, whole and once."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.store import victims
from tests.store.makers import planned, row, row_id, stored, write_plan
from vsteer.store.check import check
from vsteer.store.journal import journals, whole_rows
from vsteer.store.store import open_store

FORK = multiprocessing.get_context("fork")
PLANNED = 400


@pytest.mark.long
def test_a_run_that_is_always_killed_soon_goes_on(tmp_path: Path) -> None:
    """With the store's own settings, 40 rows a second and a kill every few seconds."""
    before = 0
    for _ in range(3):
        victim = FORK.Process(target=victims.run_on, args=(tmp_path, PLANNED, 0.025))
        victim.start()
        victim.join(4)
        victim.kill()
        victim.join()
        assert victim.exitcode == -signal.SIGKILL
        with open_store(tmp_path) as store:
            now = len(store.done().good)
        # Of 160 rows those of the last second or two may be lost, and more where the machine is slow.
        assert now >= before + 40
        before = now
    with open_store(tmp_path) as store:
        done = set(store.done().good)
        write_plan(store, PLANNED)
        for number in range(PLANNED):
            if row_id(number) not in done:
                store.append(victims.planned_row(number))
    assert check(tmp_path, planned(range(PLANNED))) == []
    assert not journals(tmp_path)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed with ten rows in a shard and three pieces of rows in a journal."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    victim = FORK.Process(target=_in_three_pieces, args=(folder,))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    (journal,) = journals(folder).values()
    assert len(whole_rows(journal)) == 9
    return folder


def _in_three_pieces(folder: Path) -> None:
    with open_store(folder, shard_seconds=3600) as store:
        for number in range(10):
            store.append(row(number))
        store.flush()
        store._wait = 3600.0
        for number in range(10, 19, 3):
            for place in range(3):
                store.append(row(number + place))
            while store._kept != store._buffer.mark():
                time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


def copied(folder: Path, to: Path) -> tuple[Path, Path]:
    shutil.copytree(folder, to)
    (journal,) = journals(to).values()
    return to, journal


def test_the_next_start_makes_a_shard_of_it(tmp_path: Path, killed: Path) -> None:
    run, journal = copied(killed, tmp_path / "run")
    assert len(stored(run)) == 10
    with open_store(run) as store:
        assert len(store.done().good) == 19
        assert not journal.exists()
    assert stored(run) == sorted((row_id(number), "ok", 1) for number in range(19))


def test_cut_or_damaged_anywhere_its_whole_pieces_stand_and_nothing_else(
    tmp_path: Path, killed: Path
) -> None:
    run, journal = copied(killed, tmp_path / "run")
    content = journal.read_bytes()
    ids = [row_id(number) for number in range(10, 19)]
    step = len(content) // 60
    for place in range(0, len(content), step):
        for bad in (content[:place], content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]):
            journal.write_bytes(bad)
            found = whole_rows(journal)["row_id"].to_pylist()
            assert found == ids[: len(found)]
            assert len(found) in (0, 3, 6)
            # The pieces are about equally long, and those before the damage stand.
            assert len(found) >= 3 * int(place / (len(content) / 3) - 0.2)
    with open_store(run) as store:
        assert len(store.done().good) >= 10 + 6


def test_rows_that_are_in_their_shard_already_are_not_written_again(tmp_path: Path, killed: Path) -> None:
    """As when the kill comes after the shard was written and before the journal was deleted."""
    run, journal = copied(killed, tmp_path / "run")
    kept = journal.read_bytes()
    open_store(run).close()
    journal.write_bytes(kept)
    with open_store(run):
        assert not journal.exists()
    assert len(stored(run)) == 19
