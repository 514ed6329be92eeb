"""A run's folder that somebody else prepared: nothing outside it is written, renamed or deleted."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.store.makers import row, row_id, stored, text_row, write_plan
from vsteer.errors import StoreError
from vsteer.files import written_whole
from vsteer.scoring.scorers import PLAIN
from vsteer.scoring.stored_texts import score_texts
from vsteer.store import lock
from vsteer.store.events import append_event, end_torn_line
from vsteer.store.lock import FolderLock, holder
from vsteer.store.store import open_store
from vsteer.store.views import rows_sql

MINE = "a week of work"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file outside the run, which links of the run point to."""
    file = tmp_path / "mine.txt"
    file.write_text(MINE)
    return file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    with open_store(folder) as store:
        write_plan(store, 4)
        for number in range(4):
            store.append(text_row(number))
    return folder


def test_a_lock_that_is_a_link_leaves_its_target_alone(run: Path, mine: Path) -> None:
    (run / "run.lock").unlink()
    (run / "run.lock").symlink_to(mine)
    for look in (open_store, holder):
        with pytest.raises(StoreError, match=r"run\.lock is a symbolic link"):
            look(run)
    assert mine.read_text() == MINE


def test_events_that_are_a_link_are_not_written(run: Path, mine: Path) -> None:
    (run / "events.jsonl").unlink()
    (run / "events.jsonl").symlink_to(mine)
    for write in (lambda: append_event(run, "start"), lambda: end_torn_line(run), lambda: open_store(run)):
        with pytest.raises(StoreError, match=r"events\.jsonl is a symbolic link"):
            write()
    assert mine.read_text() == MINE


def test_a_link_where_a_file_is_to_be_written_first_is_taken_away(run: Path, mine: Path) -> None:
    """The names that files have until they are whole can be known beforehand."""
    for name in (".manifest.json.tmp", ".configs.parquet.tmp", ".report.html.tmp"):
        (run / name).symlink_to(mine)
    with open_store(run) as store:
        write_plan(store, 4)
    with written_whole(run / "report.html") as temporary:
        temporary.write_text("<html>")
    score_texts(run, PLAIN["length"])
    (scores,) = (run / "scores").glob("length-*.parquet")
    (run / "scores" / f".{scores.name}.tmp").symlink_to(mine)
    scores.unlink()
    score_texts(run, PLAIN["length"])
    assert scores.is_file()
    assert mine.read_text() == MINE


@pytest.mark.parametrize("name", ["rows", "rows.new", "rows.old"])
def test_rows_in_another_place_are_neither_moved_nor_deleted(run: Path, tmp_path: Path, name: str) -> None:
    """A compaction would put a folder in the link's place, and delete what it points to."""
    other = tmp_path / "other"
    with open_store(other) as store:
        for number in range(10, 13):
            store.append(row(number))
    before = sorted(path.name for path in (other / "rows").iterdir())
    if name == "rows":
        (run / "rows").rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere" if name == "rows" else other / "rows")
    with pytest.raises(StoreError, match=rf"{name} is a symbolic link") as refused:
        open_store(run)
    assert "put the folder itself there" in refused.value.hint
    assert sorted(path.name for path in (other / "rows").iterdir()) == before
    assert len(stored(other)) == 3
    # reading moves nothing
    assert len(stored(run)) == 4
    assert rows_sql(run)
    (run / name).unlink()
    if name == "rows":
        (tmp_path / "elsewhere").rename(run / "rows")
    with open_store(run) as store:
        store.append(row(5))
    assert len(stored(run)) == 5


def test_a_whole_runs_folder_may_be_a_link(run: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(run)
    with open_store(link) as store:
        store.append(row(5))
        store.compact()
    assert [row[0] for row in stored(run)] == sorted(row_id(n) for n in (0, 1, 2, 3, 5))


def test_a_lock_counts_only_where_its_folder_still_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a lock while `--fresh` puts the folder aside would have the old folder's lock."""
    held = FolderLock(run)
    waits = threading.Event()
    locked = lock._locked

    def slowly(handle: int) -> bool:
        waits.set()
        return locked(handle)

    monkeypatch.setattr(lock, "_locked", slowly)
    found: list[object] = []

    def second() -> None:
        try:
            found.append(open_store(run))
        except StoreError as error:
            found.append(error.message)

    thread = threading.Thread(target=second)
    thread.start()
    assert waits.wait(10)
    aside = run.with_name("run.before")
    run.rename(aside)
    held.release()
    with open_store(run) as store:
        thread.join(10)
        assert found == [f"{run} was put aside or replaced while its lock was awaited"]
        store.append(row(0))
    assert len(stored(run)) == 1
    assert len(stored(aside)) == 4
