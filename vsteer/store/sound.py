"""What a reader may read of a run: files whose bytes are those that were written, each verified once.

`.verified.json` in the run's folder notes the size and times of each file that was found sound, so that the
next reader only looks at those, and which shards have no row in common. A damaged file is set aside as a run
does it. Where that can't be done, since the run goes on or the folder can't be written, it stays and is left
out. A warning says so either way.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from vsteer.errors import StoreError
from vsteer.files import parse_json, read_regular, written_whole
from vsteer.store import shards as sh
from vsteer.store.database import file_list, in_memory
from vsteer.store.events import append_event
from vsteer.store.files import disk_errors, refuse_name
from vsteer.store.lock import FolderLock
from vsteer.store.schema import as_written
from vsteer.store.seal import broken

log = logging.getLogger(__name__)

NOTE = ".verified.json"
T = TypeVar("T")


def require_run(folder: Path) -> Path:
    refuse_name(folder)
    with disk_errors(f"reading {folder}"):
        there = (folder / sh.ROWS_FOLDER).is_dir() or (folder / sh.OLD_ROWS_FOLDER).is_dir()
    if not there:
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
    set_aside_damaged(
        folder, shards, folder, "the figures lack its rows until `vsteer run` computes them anew"
    )
    if sound := [shard for shard, why in shards.items() if not why]:
        return sound
    raise StoreError(
        f"there is no shard in {folder / sh.ROWS_FOLDER} that can be read",
        hint="`vsteer run` with the same grid computes its rows",
    )


def faults_of_tables(folder: Path, tables: Mapping[Path, pa.Schema | None]) -> dict[Path, str | None]:
    """What is wrong with each of these tables of a run that is there: one that isn't a shard, but derived.

    Without a schema any columns will do.
    """
    with disk_errors(f"reading {folder}"):
        there = [path for path in tables if os.path.lexists(path)]
        faults = _verified(folder, there, fault_of_table, note=True)
        return {path: why or _other_columns(path, tables[path]) for path, why in faults.items()}


def _other_columns(path: Path, wanted: pa.Schema | None) -> str | None:
    """A file of another schema may lie in a table's place, as sound as it is."""
    if wanted is None:
        return None
    try:
        found = pq.read_schema(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        return _unreadable(error)
    wanted = as_written(wanted, found.names)
    if [(field.name, field.type) for field in found] == [(field.name, field.type) for field in wanted]:
        return None
    return "it has other columns than it should"


def verified(folder: Path, rows: Path, *, note: bool = False) -> dict[Path, str | None]:
    """Every shard in `rows`, oldest first, and what is wrong with it; `note` writes down which are sound."""
    return _verified(folder, sh.list_shards(rows), sh.fault_of, note)


def fault_of_table(path: Path) -> str | None:
    """Why this isn't a table as it was written, or None; one without a seal Arrow and DuckDB must read."""
    try:
        if not path.is_file():
            return "it is no file"
        if not path.stat().st_size:
            return "it is empty"
        if (is_broken := broken(path)) is not None:
            return "its checksum is another's" if is_broken else None
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for _ in file.iter_batches():
                pass
        with in_memory() as database:
            for _ in database.sql(f"select * from read_parquet({file_list([path])})").to_arrow_reader():
                pass
    except (FileNotFoundError, PermissionError):
        raise  # what may not be read isn't damaged, and must not be made anew
    except (pa.ArrowException, duckdb.Error, OSError, ValueError) as error:
        return _unreadable(error)
    return None


def _unreadable(error: Exception) -> str:
    return f"it can't be read: {str(error).splitlines()[0][:120]}"


def _verified(
    folder: Path, files: Sequence[Path], fault_of: Callable[[Path], str | None], note: bool
) -> dict[Path, str | None]:
    noted = _read_note(folder)
    now, faults = dict(noted.files), {}
    for file in files:
        # A change of a file's bytes changes its ctime too, which no program can set.
        name = str(file.relative_to(folder))
        found = file.stat() if file.exists() else file.lstat()
        stamp = [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        faults[file] = None if noted.files.get(name) == stamp else fault_of(file)
        if faults[file] is None:
            now[name] = stamp
    if note and now != noted.files:
        there = {name: stamp for name, stamp in now.items() if (folder / name).exists()}
        _write_note(folder, _Note(there, noted.distinct))
    return faults


def noted_distinct(folder: Path, shards: Sequence[Path]) -> bool:
    """Whether somebody found that no row stands twice in these shards, whose names tell their bytes."""
    return _read_note(folder).distinct == _names(shards)


def note_distinct(folder: Path, shards: Sequence[Path]) -> None:
    _write_note(folder, _Note(_read_note(folder).files, _names(shards)))


def _names(shards: Sequence[Path]) -> str:
    return hashlib.sha256("\n".join(shard.name for shard in shards).encode()).hexdigest()


@dataclass(frozen=True)
class _Note:
    files: Mapping[str, Any]
    distinct: str


def _read_note(folder: Path) -> _Note:
    try:
        noted = parse_json(read_regular(folder / NOTE, 2**26))
        files, distinct = noted["files"], noted["distinct"]
    except (OSError, ValueError, TypeError, KeyError):
        files, distinct = {}, ""
    return _Note(files if isinstance(files, dict) else {}, distinct if isinstance(distinct, str) else "")


def _write_note(folder: Path, note: _Note) -> None:
    # Whoever can't write here looks again next time.
    with suppress(OSError), written_whole(folder / NOTE, shared=True) as temporary:
        temporary.write_text(json.dumps(asdict(note)))


def set_aside_damaged(folder: Path, faults: Mapping[Path, str | None], locked: Path, so: str) -> None:
    """Move what has a fault out of the way, under the lock of the folder `locked` whose writer it has."""
    damaged = {file: why for file, why in faults.items() if why}
    if not damaged:
        return
    try:
        lock = FolderLock(locked)
    except StoreError:
        for file, why in damaged.items():
            log.warning("%s is left out: %s; %s", file.relative_to(folder), why, so)
        return
    try:
        for file, why in damaged.items():
            # Its writer may have moved it since.
            if os.path.lexists(file):
                set_aside_with_warning(folder, file, why, so)
    finally:
        lock.release()


def set_aside_with_warning(folder: Path, file: Path, why: str, so: str) -> None:
    """Set a damaged file aside, with a warning and an event; the caller holds the lock of its folder."""
    name, moved = file.relative_to(folder), sh.set_aside(folder, file, why)
    log.warning("%s is set aside as %s: %s; %s", name, moved.to, why, so)
    append_event(folder, "set_aside", file=moved.name, to=moved.to, why=why)
