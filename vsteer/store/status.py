"""Where a run stands, by its folder alone and without disturbing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vsteer.store import shards as sh
from vsteer.store.events import UNREADABLE, Event, is_torn, read_events
from vsteer.store.lock import Holder, holder
from vsteer.store.manifest import DamagedManifest, read_manifest
from vsteer.store.sound import noted_distinct, require_run, steadily, verified


@dataclass(frozen=True)
class Status:
    planned: int | None  # None before the plan was written, or where the manifest is damaged
    manifest: str  # what is wrong with the manifest; empty: nothing
    done: int  # rows with a good result
    errors: int  # rows with nothing but errors
    sessions: int  # how often the run was started
    compacted: bool
    unreadable: tuple[str, ...]  # files in rows/ that no row was read from
    set_aside: int  # files that were moved out of the run since they can't be read, or aren't its own
    unplanned: int  # files in set-aside/ with rows that a changed grid no longer planned
    unreadable_events: int  # lines of events.jsonl that are not those written
    last_event: Event | None  # of the others
    holder: Holder | None  # who runs it now

    @property
    def live(self) -> bool:
        return self.holder is not None

    @property
    def missing(self) -> int | None:
        """How many planned rows were never tried, supposing that none of the others is unplanned."""
        return None if self.planned is None else max(0, self.planned - self.done - self.errors)


def status(folder: Path) -> Status:
    fault = ""
    try:
        manifest = read_manifest(require_run(folder))
    except DamagedManifest as error:
        manifest, fault = None, str(error)
    read = read_events(folder)
    events = [event for event in read if event["event"] != UNREADABLE]
    shards, damaged, (good, errors) = steadily(folder, lambda rows: _read(folder, rows))
    runs = holder(folder)
    aside = folder / sh.SET_ASIDE
    moved = [path.name for path in aside.iterdir()] if aside.is_dir() else []
    unplanned = sum(sh.is_unplanned(name) for name in moved)
    return Status(
        planned=None if manifest is None else manifest["rows"],
        manifest=fault,
        done=good,
        errors=errors,
        sessions=max((event.get("session", 0) for event in events), default=0),
        compacted=sh.is_compact(shards),
        unreadable=damaged,
        set_aside=len(moved) - unplanned,
        unplanned=unplanned,
        unreadable_events=len(read) - len(events) + (runs is None and is_torn(folder)),
        last_event=events[-1] if events else None,
        holder=runs,
    )


def _read(folder: Path, rows: Path) -> tuple[list[Path], tuple[str, ...], tuple[int, int]]:
    shards = verified(folder, rows)
    damaged = tuple(shard.name for shard, why in shards.items() if why)
    sound = [shard for shard, why in shards.items() if not why]
    distinct = sh.is_compact(sound) or noted_distinct(folder, sound)
    return list(shards), damaged, sh.counts(sound, distinct=distinct)
