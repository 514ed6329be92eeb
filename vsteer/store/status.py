"""Where a run stands, by its folder alone and without disturbing it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vsteer.errors import StoreError
from vsteer.store import shards as sh
from vsteer.store.events import Event, read_events
from vsteer.store.files import disk_errors
from vsteer.store.lock import Holder, holder
from vsteer.store.manifest import read_manifest

T = TypeVar("T")


@dataclass(frozen=True)
class Status:
    planned: int | None  # None before the plan was written
    done: int  # rows with a good result
    errors: int  # rows with nothing but errors
    sessions: int  # how often the run was started
    shards: int
    compacted: bool
    unreadable: tuple[str, ...]  # files in rows/ that no row was read from
    set_aside: int  # files that were moved out of rows/
    last_event: Event | None
    holder: Holder | None  # who runs it now

    @property
    def live(self) -> bool:
        return self.holder is not None

    @property
    def missing(self) -> int | None:
        """How many planned rows were never tried, supposing that none of the others is unplanned."""
        return None if self.planned is None else max(0, self.planned - self.done - self.errors)


def status(folder: Path) -> Status:
    manifest = read_manifest(require_run(folder))
    events = read_events(folder)
    shards, unreadable, done = steadily(folder, _read)
    aside = folder / sh.SET_ASIDE
    return Status(
        planned=None if manifest is None else manifest["rows"],
        done=len(done.good),
        errors=len(done.errors),
        sessions=max((event.get("session", 0) for event in events), default=0),
        shards=len(shards),
        compacted=sh.is_compact(shards),
        unreadable=unreadable,
        set_aside=len(list(aside.iterdir())) if aside.is_dir() else 0,
        last_event=events[-1] if events else None,
        holder=holder(folder),
    )


def _read(rows: Path) -> tuple[list[Path], tuple[str, ...], sh.Done]:
    shards = sh.list_shards(rows)
    bad = [shard for shard in shards if sh.fault_of(shard, whole=False)]
    good = [shard for shard in shards if shard not in bad]
    return shards, tuple(shard.name for shard in bad), sh.read_done(good)


def require_run(folder: Path) -> Path:
    if not (folder / sh.ROWS_FOLDER).is_dir() and not (folder / sh.OLD_ROWS_FOLDER).is_dir():
        raise StoreError(
            f"{folder} is not a run's folder", hint="give the folder with manifest.json and rows/"
        )
    return folder


def steadily(folder: Path, read: Callable[[Path], T]) -> T:
    """Read rows/, again where a compaction took its files away in the middle."""
    for _ in range(20):
        with disk_errors(f"reading {folder}"), suppress(FileNotFoundError):
            return read(sh.rows_folder(folder))
    raise StoreError(f"the files in {folder} change whenever they are read", hint="try again in a minute")
