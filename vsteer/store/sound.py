"""What a reader may read in rows/: the shards whose bytes are those that were written, each verified once.

`.verified.json` in the run's folder notes the size and times of each shard that was found sound, so that the
next reader only looks at those. A damaged shard is set aside as a run does it. Where that can't be done,
since the run goes on or the folder can't be written, it stays and is left out. A warning says so either way.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from vsteer.errors import StoreError
from vsteer.store import shards as sh
from vsteer.store.events import append_event
from vsteer.store.files import disk_errors, write_file
from vsteer.store.lock import FolderLock

log = logging.getLogger(__name__)

NOTE = ".verified.json"
T = TypeVar("T")


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


def sound_shards(folder: Path) -> list[Path]:
    """The shards that can be trusted, at least one, oldest first; a warning names each of the others."""
    shards = steadily(require_run(folder), partial(verified, folder, note=True))
    if damaged := {shard: why for shard, why in shards.items() if why}:
        _set_aside(folder, damaged)
    if sound := [shard for shard, why in shards.items() if not why]:
        return sound
    raise StoreError(
        f"there is no shard in {folder / sh.ROWS_FOLDER} that can be read",
        hint="`vsteer run` with the same grid computes its rows",
    )


def verified(folder: Path, rows: Path, *, note: bool = False) -> dict[Path, str | None]:
    """Every shard in `rows`, oldest first, and what is wrong with it; `note` writes down which are sound."""
    noted = _read_note(folder)
    now, faults = {}, {}
    for shard in sh.list_shards(rows):
        found = shard.stat()
        # A change of a file's bytes changes its ctime too, which no program can set.
        stamp = [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        faults[shard] = None if noted.get(shard.name) == stamp else sh.fault_of(shard)
        if faults[shard] is None:
            now[shard.name] = stamp
    if note and now != noted:
        # Whoever can't write here verifies again next time.
        with suppress(StoreError):
            write_file(folder / NOTE, json.dumps(now).encode())
    return faults


def _read_note(folder: Path) -> dict[str, list[int]]:
    try:
        noted = json.loads((folder / NOTE).read_bytes())
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _set_aside(folder: Path, damaged: dict[Path, str]) -> None:
    lost = "the figures lack its rows until `vsteer run` computes them anew"
    try:
        lock = FolderLock(folder)
    except StoreError:
        for shard, why in damaged.items():
            log.warning("%s/%s is left out: %s; %s", sh.ROWS_FOLDER, shard.name, why, lost)
        return
    try:
        for shard, why in damaged.items():
            # A run may have moved it since.
            if os.path.lexists(shard):
                moved = sh.set_aside(folder, shard, why)
                log.warning(
                    "%s/%s is set aside as %s: %s; %s", sh.ROWS_FOLDER, shard.name, moved.to, why, lost
                )
                append_event(folder, "set_aside", file=moved.name, to=moved.to, why=why)
    finally:
        lock.release()
