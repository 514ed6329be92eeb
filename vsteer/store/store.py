"""The one writer of a run folder: opened under a lock, fed row by row, killed at any moment.

A shard is written after `shard_rows` rows, or `shard_seconds` after its first row, whichever comes sooner;
the first shards of a start come after 1, 2, 4... seconds, so that SQL soon finds rows. A row that waits for
its shard is in a journal a second later, and safe there. Where a write fails, nothing is dropped: the same
call goes on once the cause is gone.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from vsteer.errors import StoreError
from vsteer.files import sync
from vsteer.store import compaction
from vsteer.store import shards as sh
from vsteer.store.compaction import Compacted
from vsteer.store.events import append_event, end_torn_line, read_events
from vsteer.store.files import disk_errors, refuse_name, write_file, write_sealed
from vsteer.store.journal import Journal, journals, whole_rows
from vsteer.store.lock import FolderLock
from vsteer.store.manifest import MANIFEST, DamagedManifest, Manifest, read_manifest, write_manifest
from vsteer.store.planned import Planned, Standing, read_standing
from vsteer.store.records import Mark, Record, config_buffer, prompt_buffer, row_buffer
from vsteer.store.sound import set_aside_with_warning
from vsteer.store.views import CONFIGS, PROMPTS

log = logging.getLogger(__name__)

SHARD_ROWS = 10_000
SHARD_SECONDS = 20.0
# How long the first row of a start's first shard waits, and a row until it is in the journal.
SOON = 1.0


def open_store(folder: Path, *, shard_rows: int = SHARD_ROWS, shard_seconds: float = SHARD_SECONDS) -> Store:
    """Open a run folder for writing, new or not, and repair what a kill or a bad disk left there."""
    refuse_name(folder)
    with disk_errors(f"making {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    try:
        return Store(folder, lock, shard_rows, shard_seconds)
    except BaseException:
        lock.release()
        raise


class Store:
    """A run folder that this process alone writes. Made by `open_store`; any thread may append."""

    def __init__(self, folder: Path, lock: FolderLock, shard_rows: int, shard_seconds: float) -> None:
        self.folder = folder
        self.manifest: Manifest | None = None
        try:
            self.manifest = read_manifest(folder)
        except DamagedManifest:
            set_aside_with_warning(folder, folder / MANIFEST, "it is damaged", "it is written anew")
        # What was moved out of rows/ so far; each file is an event and a warning too.
        self.set_aside: list[sh.SetAside] = []
        self._lock = lock
        self._rows_folder = folder / sh.ROWS_FOLDER
        self._shard_rows, self._shard_seconds = shard_rows, shard_seconds
        self._buffer = row_buffer()
        self._oldest = 0.0  # when the oldest row of the buffer came
        self._wait = min(SOON, shard_seconds)  # how long that row may wait for its shard
        self._journal = Journal(folder)
        self._kept: Mark = (0, 0)  # up to where the buffer's rows are in the journal
        self._failed: Path | None = None  # the shard of a write that failed
        # What stands in which shards: a shard's name is never used twice, so these names say it is so still.
        self._standing: tuple[list[Path], Planned, Standing] | None = None
        self._mutex = threading.RLock()
        self._closing = threading.Event()
        # Which start of the run this is, from 1: a row's run_session.
        self.session = self._begin()
        self._clock = threading.Thread(target=self._flush_in_time, name="vsteer-store", daemon=True)
        self._clock.start()

    def _begin(self) -> int:
        end_torn_line(self.folder)
        sessions = [event.get("session", 0) for event in read_events(self.folder)]
        session = 1 + max(sessions, default=0)
        self._report(compaction.recover(self.folder))
        with disk_errors(f"making {self._rows_folder}"):
            self._rows_folder.mkdir(exist_ok=True)
            sync(self.folder)
        self._report(sh.tidy(self.folder))
        with disk_errors(f"reading {self._rows_folder}"):
            shards = sh.list_shards(self._rows_folder)
        self._next = 1 + max(map(sh.number_of, shards), default=0)
        self._recover_journal()
        if self._next == 1:
            # So that SQL on rows/*.parquet answers from the first second.
            self._write_shard(row_buffer().table())
        append_event(self.folder, "resume" if session > 1 else "start", session=session)
        return session

    def _recover_journal(self) -> None:
        """Write what a kill left in a journal as a shard, unless that shard was written before the kill."""
        for number, journal in journals(self.folder).items():
            if number >= self._next and len(rows := whole_rows(journal)):
                self._next = number
                self._write_shard(rows)
            with disk_errors(f"deleting {journal}"):
                journal.unlink()

    def write_plan(
        self,
        manifest: Mapping[str, Any],
        configs: Iterable[Record],
        prompts: Iterable[Record] | None,
        rows: int,
    ) -> None:
        """Write what the run is, before its first row and again after each resume; `rows` are planned.

        `prompts` may be None once they were written: they stay.
        """
        counts = {"rows": rows}
        for name, buffer, records in (
            (CONFIGS, config_buffer(), configs),
            (PROMPTS, prompt_buffer(), prompts),
        ):
            count = Path(name).stem
            if records is None:
                assert self.manifest is not None
                counts[count] = self.manifest[count]
                continue
            for record in records:
                buffer.add(record)
            write_sealed(self.folder / name, buffer.table())
            counts[count] = len(buffer)
        # It is written last, so that a folder with a manifest has the rest.
        self.manifest = write_manifest(self.folder, manifest, counts)

    def done(self) -> sh.Done:
        """Which rows stand on disk, by their ids; those that are still in memory are not among them."""
        with self._mutex, disk_errors(f"reading {self._rows_folder}"):
            return sh.read_done(sh.list_shards(self._rows_folder))

    def standing(self, planned: Planned) -> Standing:
        """Which of the planned rows stand on disk; those that are still in memory are not among them."""
        with self._mutex, disk_errors(f"reading {self._rows_folder}"):
            shards = sh.list_shards(self._rows_folder)
            if self._standing is None or self._standing[0] != shards or self._standing[1] is not planned:
                self._standing = shards, planned, read_standing(shards, planned)
            return self._standing[2]

    def append(self, record: Record) -> None:
        """Take one row. Where this raises, the row was not taken."""
        with self._mutex:
            self._refuse_if_closed()
            if self._due():
                self.flush()
            self._buffer.add(record)
            if len(self._buffer) == 1:
                self._oldest = time.monotonic()

    def append_rows(self, rows: pa.Table) -> None:
        """Take rows as columns. Where this raises, none was taken."""
        with self._mutex:
            self._refuse_if_closed()
            if self._due():
                self.flush()
            if not len(self._buffer):
                self._oldest = time.monotonic()
            self._buffer.add_table(rows)

    def flush(self) -> None:
        """Make every row durable that was appended."""
        with self._mutex:
            self._refuse_if_closed()
            if len(self._buffer):
                self._write_shard(self._buffer.table())
                self._buffer.clear()
                self._journal.clear()
                self._kept = (0, 0)
                self._wait = min(self._shard_seconds, 2 * self._wait)

    def event(self, event: str, **fields: Any) -> None:
        """Write a line into events.jsonl, such as an engine's restart."""
        with self._mutex:
            append_event(self.folder, event, session=self.session, **fields)

    def compact(self, most: int | None = None) -> Compacted | None:
        """Flush, and put each row once into one sorted file.

        None where that is so already, or where there are more rows than `most`.
        """
        with self._mutex:
            self.flush()
            if most is not None and sh.row_count(sh.list_shards(self._rows_folder)) > most:
                return None
            started = time.monotonic()
            self._next += 1
            made = compaction.compact(self.folder, self._next - 1)
            if made:
                seconds = round(time.monotonic() - started, 2)
                self.event("compact", rows=made.rows, shards=made.shards, seconds=seconds)
                self._report(made.set_aside)
            return made

    def put_aside_unplanned(self, planned: Planned) -> int:
        """Move rows that no plan has any more out of rows/, into a file in set-aside/; return their number.

        Another vector of the same name may have made them, and a query would mix the two.
        """
        with self._mutex:
            self.flush()
            unplanned = self.standing(planned).unplanned
            if not len(unplanned):
                return 0
            shards = sh.list_shards(self._rows_folder)
            aside = self.folder / sh.SET_ASIDE / sh.unplanned_name(self.session)
            with disk_errors(f"writing {aside}"):
                aside.parent.mkdir(exist_ok=True)
            write_sealed(aside, compaction.rows_of(shards, unplanned))
            self._next += 1
            compaction.compact(self.folder, self._next - 1, without=unplanned)
            self.event("unplanned", rows=len(unplanned), to=aside.name)
            return len(unplanned)

    def take_back(self, planned: Planned) -> int:
        """Put good rows that were moved aside and are planned again back into rows/; return their number.

        Their configurations and questions say that they are the same rows. The files in set-aside/ stay as
        they are; one that can't be read is skipped, and its rows are computed anew.
        """
        with self._mutex:
            self.flush()
            asides = sorted((self.folder / sh.SET_ASIDE).glob(f"{sh.UNPLANNED}*.parquet"))
            if not asides:
                return 0
            stands = self.standing(planned).good.copy()
            count = 0
            for aside in asides:
                rows = sh.good_rows(aside)
                places, first = np.unique(planned.places(rows), return_index=True)
                wanted = first[(places >= 0) & ~stands[places]]
                if len(wanted):
                    self._write_shard(rows.take(np.sort(wanted)))
                    stands[places[places >= 0]] = True
                    count += len(wanted)
            if count:
                self.event("taken_back", rows=count)
            return count

    def close(self) -> None:
        """Flush and let the folder go. Where the flush fails, the store stays open with its rows."""
        with self._mutex:
            if not self._closing.is_set():
                self.flush()
                self._let_go()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        self._closing.set()
        self._lock.release()

    def _refuse_if_closed(self) -> None:
        if self._closing.is_set():
            raise ValueError("the store is closed")

    def _due(self) -> bool:
        count = len(self._buffer)
        return count >= self._shard_rows or (count > 0 and time.monotonic() - self._oldest >= self._wait)

    def _write_shard(self, rows: pa.Table) -> None:
        content = sh.shard_content(rows)
        shard = self._rows_folder / sh.shard_name("part", self._next, zlib.crc32(content))
        with disk_errors(f"writing {shard}"):
            if self._failed:
                self._failed.unlink(missing_ok=True)
        # A write that failed may have left its file, with the rows that are now written again.
        self._failed = shard
        write_file(shard, content)
        self._failed = None
        self._next += 1

    def _flush_in_time(self) -> None:
        """Write rows that have waited long while no row came after them; keep the others in the journal."""
        while not self._closing.wait(min(SOON, self._shard_seconds / 2)):
            # After a fault the rows stay in the buffer, and the caller's next call meets the same fault.
            with self._mutex, suppress(StoreError):
                if self._closing.is_set():
                    return
                if self._due():
                    self.flush()
                elif (now := self._buffer.mark()) != self._kept:
                    self._journal.add(self._next, self._buffer.table(self._kept))
                    self._kept = now

    def _report(self, moved: list[sh.SetAside]) -> None:
        for file in moved:
            log.warning("%s/%s is set aside as %s: %s", sh.ROWS_FOLDER, file.name, file.to, file.why)
            append_event(self.folder, "set_aside", file=file.name, to=file.to, why=file.why)
        self.set_aside += moved
