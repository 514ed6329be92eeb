"""The files in rows/: their names, whether one can be trusted, and which rows stand in them.

`part-N-C.parquet` is what one flush wrote, `compact-N-C.parquet` every row of the files up to N, and C the
CRC-32 of the file: Parquet's own checksums leave out its headers and statistics, and a damaged header can
hide rows. A name is never used twice, so a reader that opens one finds what it listed or nothing.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vsteer.files import TEMPORARY, sync
from vsteer.store.files import as_parquet, disk_errors
from vsteer.store.ids import PACKED, Packed, RowIds, pack_column
from vsteer.store.schema import ROWS_SCHEMA, as_written, with_added
from vsteer.store.seal import broken

ROWS_FOLDER = "rows"
NEW_ROWS_FOLDER = "rows.new"  # a compaction that isn't finished
OLD_ROWS_FOLDER = "rows.old"  # what a finished one replaced
SET_ASIDE = "set-aside"
UNPLANNED = "unplanned-"  # begins the name of a file in it
NAME = re.compile(r"(part|compact)-(\d{8})-([0-9a-f]{8})\.parquet")
BATCH = 16384


def shard_name(kind: Literal["part", "compact"], number: int, crc: int) -> str:
    return f"{kind}-{number:08d}-{crc:08x}.parquet"


def shard_content(rows: pa.Table) -> memoryview:
    """The file of some rows. The unsteered ones are a row group of their own: queries read them apart from
    the rest, and skip a group by its statistics."""
    unsteered = pc.fill_null(pc.equal(rows["vector"], ""), False)
    parts = [part for part in (rows.filter(unsteered), rows.filter(pc.invert(unsteered))) if len(part)]
    return as_parquet(*(parts or [rows]))


def crc_of(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            crc = zlib.crc32(piece, crc)
    return crc


def number_of(shard: Path) -> int:
    found = NAME.fullmatch(shard.name)
    return int(found[2]) if found else 0


def rows_folder(folder: Path) -> Path:
    """Where the rows are: a kill in the middle of a compaction's swap leaves them in rows.old/."""
    rows, old = folder / ROWS_FOLDER, folder / OLD_ROWS_FOLDER
    return old if old.is_dir() and not rows.is_dir() else rows


def list_shards(rows: Path) -> list[Path]:
    """The files that have a shard's name, oldest first."""
    return sorted((path for path in rows.iterdir() if NAME.fullmatch(path.name)), key=number_of)


def fault_of(shard: Path, *, whole: bool = True) -> str | None:
    """Why this file isn't a shard that can be read, or None; `whole` holds every byte to its checksum."""
    found_as = shard.lstat()
    if not stat.S_ISREG(found_as.st_mode):
        return "it is no file"
    if not found_as.st_size:
        return "it is empty"
    found = NAME.fullmatch(shard.name)
    if whole and (not found or crc_of(shard) != int(found[3], 16)):
        return "its bytes are not those that were written: it is torn or damaged"
    try:
        schema = pq.read_schema(shard)
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"it can't be read: {str(error).splitlines()[0][:120]}"
    if not schema.equals(as_written(ROWS_SCHEMA, schema.names)):
        return "it has other columns than rows have"
    if (schema.metadata or {}).get(b"vsteer") != ROWS_SCHEMA.metadata[b"vsteer"]:
        return "it is not of this version of vsteer's rows"
    return None


def is_compact(shards: Sequence[Path]) -> bool:
    return len(shards) == 1 and shards[0].name.startswith("compact-")


def row_count(shards: Sequence[Path]) -> int:
    return sum(pq.read_metadata(shard).num_rows for shard in shards)


@dataclass(frozen=True)
class SetAside:
    """A file that was moved out of rows/, because it must not be read for rows."""

    name: str
    to: str  # where it is now, within the run folder
    why: str


def unplanned_name(session: int) -> str:
    """The file in set-aside/ for rows that the grid no longer plans, as one start of a run found it."""
    return f"{UNPLANNED}{session}.parquet"


def is_unplanned(name: str) -> bool:
    return name.startswith(UNPLANNED)


def set_aside(folder: Path, path: Path, why: str) -> SetAside:
    """Move a file (or folder) out of rows/, never over another."""
    target = folder / SET_ASIDE
    with disk_errors(f"setting {path} aside"):
        target.mkdir(exist_ok=True)
        place, count = target / path.name, 1
        while os.path.lexists(place):
            place, count = target / f"{path.name}.{count}", count + 1
        path.rename(place)
        sync(target)
        sync(path.parent)
    return SetAside(path.name, str(place.relative_to(folder)), why)


def tidy(folder: Path) -> list[SetAside]:
    """Leave nothing in rows/ but sound shards; only the holder of the lock may call it."""
    rows, moved = folder / ROWS_FOLDER, []
    with disk_errors(f"reading {rows}"):
        for path in sorted(rows.iterdir()):
            if path.name.startswith(".") and path.name.endswith(TEMPORARY) and path.is_file():
                path.unlink()
            elif not NAME.fullmatch(path.name) or path.is_symlink() or not path.is_file():
                moved.append(set_aside(folder, path, "it is not a file of vsteer's"))
            elif why := fault_of(path):
                moved.append(set_aside(folder, path, why))
    return moved


@dataclass(frozen=True)
class Done:
    """Which rows have a good result, and which have nothing but errors."""

    good: RowIds
    errors: RowIds
    error_attempts: NDArray[np.int32]  # the highest attempt of each of `errors`

    def attempts(self, wanted: Packed) -> NDArray[np.int32]:
        """How many times each of these rows was tried without a good result; 0 for any other row."""
        places, found = self.errors.places(wanted)
        attempts = np.zeros(len(wanted), np.int32)
        attempts[found] = self.error_attempts[places[found]]
        return attempts


def read_done(shards: Sequence[Path]) -> Done:
    good, bad, attempts = [], [np.empty(0, PACKED)], [np.empty(0, np.int32)]
    for batch in _batches(shards, "row_id", "status", "attempt"):
        ids, ok = pack_column(batch["row_id"]), _is_good(batch)
        good.append(ids[ok])
        bad.append(ids[~ok])
        attempts.append(batch["attempt"].to_numpy()[~ok])
    good_ids = RowIds.of_packed(good)
    bad_ids, where = np.unique(np.concatenate(bad), return_inverse=True)
    highest = np.zeros(len(bad_ids), np.int32)
    np.maximum.at(highest, where, np.concatenate(attempts))
    only_bad = ~good_ids.places(bad_ids)[1]
    return Done(good_ids, RowIds(bad_ids[only_bad]), highest[only_bad])


def counts(shards: Sequence[Path], *, distinct: bool) -> tuple[int, int]:
    """How many rows have a good result, and how many nothing but errors; `distinct`: none stands twice."""
    if not distinct:
        done = read_done(shards)
        return len(done.good), len(done.errors)
    good = sum(int(_is_good(batch).sum()) for batch in _batches(shards, "status"))
    return good, row_count(shards) - good


def good_rows(file: Path) -> pa.Table:
    """The good rows of a file outside rows/; none where it can't be trusted."""
    try:
        if fault_of(file, whole=False) is None and not broken(file):
            rows = pq.read_table(file, page_checksum_verification=True)
            return with_added(rows.filter(pc.equal(rows["status"], "ok")), ROWS_SCHEMA)
    except (pa.ArrowException, OSError):
        pass
    return ROWS_SCHEMA.empty_table()


def _batches(shards: Sequence[Path], *columns: str) -> Iterator[pa.RecordBatch]:
    for shard in shards:
        with pq.ParquetFile(shard, page_checksum_verification=True) as file:
            yield from file.iter_batches(BATCH, columns=list(columns))


def _is_good(batch: pa.RecordBatch) -> NDArray[np.bool_]:
    return np.asarray(pc.equal(batch["status"], "ok").to_numpy(zero_copy_only=False), np.bool_)
