"""Many shards into one file: each row once, sorted so that DuckDB can skip what a query doesn't ask for.

The new file is written into rows.new/, and then the folders change places: rows/ becomes rows.old/ and
rows.new/ becomes rows/. So `rows/*.parquet` holds the shards or the new file and never both, and whoever
is killed anywhere leaves rows/ or rows.old/ complete. `recover` goes on from there.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from vsteer.errors import StoreError
from vsteer.files import sync
from vsteer.store import shards as sh
from vsteer.store.database import in_memory
from vsteer.store.files import FULL, disk_errors, parquet_writer, refuse_link
from vsteer.store.ids import RowIds
from vsteer.store.schema import ROWS_SCHEMA
from vsteer.store.views import any_id_twice, placed, read_rows, superseded_sql

ORDER = "vector, layer nulls first, multiplier nulls first, prompt_id, row_id"
# DuckDB works in vectors of 2048 rows, and a thread takes a row group; its own groups have this size.
ROW_GROUP = 60 * 2048
# What DuckDB hands out at once. It holds several of them: whole row groups would take half a gigabyte more.
BATCH = 10 * 2048
ROW_GROUP_BYTES = 256 << 20
# DuckDB sorts on disk what this memory does not hold. How little is enough depends on rows, threads, version,
# and so four times as much is given where it was too little.
LEAST_MIB, MOST_MIB = 128, 1024
ROWS_A_MIB = 2500
THREADS = 4


@dataclass(frozen=True)
class Compacted:
    """What a compaction made."""

    file: Path
    rows: int
    shards: int  # how many files it replaced
    set_aside: list[sh.SetAside]


def compact(folder: Path, number: int, without: RowIds | None = None) -> Compacted | None:
    """Compact what is in rows/ into a shard of that number; None where there is nothing to do.

    Only the holder of the lock may call it. Where it fails, rows/ is as it was. Rows `without` are left out.
    """
    rows, new, old = _folders(folder)
    moved = recover(folder)
    with disk_errors(f"compacting {rows}"), _room_needed():
        shards = sh.list_shards(rows)
        if (sh.is_compact(shards) and not without) or not sh.row_count(shards):
            return None
        _refuse_damaged(shards)
        new.mkdir()
        try:
            written, dropped = _sort(shards, new, without or RowIds.of(()))
            expected = sh.row_count(shards) - dropped
            if written != expected:
                raise RuntimeError(f"{expected} rows became {written} when compacted; {rows} is as it was")
            name = sh.shard_name("compact", number, sh.crc_of(new / "sorted"))
            (new / "sorted").rename(new / name)
            sync(new)
            sync(folder)
            rows.rename(old)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        try:
            new.rename(rows)
        except OSError:
            old.rename(rows)
            raise
        sync(folder)
    moved += _drop(folder, old, {shard.name for shard in shards})
    return Compacted(rows / name, written, len(shards), moved)


def rows_of(shards: Sequence[Path], ids: RowIds) -> pa.Table:
    """Every attempt of these rows."""
    with in_memory() as database:
        database.register("wanted", pa.table({"row_id": pa.array(list(ids), pa.string())}))
        columns = ", ".join(ROWS_SCHEMA.names)
        found = database.sql(f"select {columns} from {read_rows(shards)} semi join wanted using (row_id)")
        return found.to_arrow_table().cast(ROWS_SCHEMA)


def recover(folder: Path) -> list[sh.SetAside]:
    """Finish or undo a compaction that was killed; only the holder of the lock may call it."""
    rows, new, old = _folders(folder)
    for each in (rows, new, old):
        # They are renamed and deleted.
        refuse_link(each, "put the folder itself there; the run's whole folder may be a link")
    with disk_errors(f"recovering {rows}"):
        if old.is_dir() and not rows.is_dir():
            old.rename(rows)
            sync(folder)
        if new.is_dir():
            shutil.rmtree(new)
        if not old.is_dir():
            return []
        replaced = sh.list_shards(old)
        # The folders were swapped, and the old one is still there. What replaced it must be whole.
        last = max(map(sh.number_of, replaced), default=0)
        heirs = [heir for heir in sh.list_shards(rows) if heir.name.startswith("compact-")]
        if not any(sh.number_of(heir) > last and sh.fault_of(heir) is None for heir in heirs):
            for shard in replaced:
                shard.rename(rows / shard.name)
            sync(rows)
            replaced = []
    return _drop(folder, old, {shard.name for shard in replaced})


def _folders(folder: Path) -> tuple[Path, Path, Path]:
    return folder / sh.ROWS_FOLDER, folder / sh.NEW_ROWS_FOLDER, folder / sh.OLD_ROWS_FOLDER


def _drop(folder: Path, old: Path, replaced: set[str]) -> list[sh.SetAside]:
    """Delete the shards that were replaced; whatever else somebody put beside them is set aside."""
    moved = []
    with disk_errors(f"clearing {old}"):
        for path in sorted(old.iterdir()):
            if path.name in replaced and path.is_file():
                path.unlink()
            else:
                moved.append(sh.set_aside(folder, path, "it is not a file of vsteer's"))
        try:
            old.rmdir()
        except OSError as error:
            # On NFS a file that a reader has open stays as .nfs until it is closed: the next start clears it.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync(folder)
    return moved


def _refuse_damaged(shards: Sequence[Path]) -> None:
    for shard in shards:
        if why := sh.fault_of(shard):
            raise StoreError(
                f"{shard} was damaged while the run went on: {why}",
                hint="give the same command again: it sets the file aside and computes its rows anew",
            )


@contextmanager
def _room_needed() -> Iterator[None]:
    """Turn what DuckDB and Arrow raise on a disk without space into a StoreError."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        full = _is_out_of_memory(error) or "space left" in str(error).lower()
        if not full or (isinstance(error, OSError) and error.errno):
            raise
        raise StoreError(f"sorting the rows failed: {str(error).splitlines()[0]}", hint=FULL) from error


def _is_out_of_memory(error: Exception) -> bool:
    """DuckDB's own error, or what becomes of it on the way through Arrow's reader."""
    return isinstance(error, duckdb.OutOfMemoryException) or "Out of Memory Error" in str(error)


def _sort(shards: Sequence[Path], new: Path, left_out: RowIds) -> tuple[int, int]:
    """Write `sorted`; return how many rows were written and how many dropped."""
    mib = min(MOST_MIB, LEAST_MIB + sh.row_count(shards) // ROWS_A_MIB)
    scratch = new / "scratch"
    try:
        try:
            return _write_sorted(shards, new / "sorted", left_out, scratch, mib)
        except (duckdb.Error, OSError) as error:
            if not _is_out_of_memory(error):
                raise
        return _write_sorted(shards, new / "sorted", left_out, scratch, 4 * mib)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_sorted(
    shards: Sequence[Path], target: Path, left_out: RowIds, scratch: Path, mib: int
) -> tuple[int, int]:
    """Write each row once, in order; return how many were written and how many dropped.

    Memory stays at DuckDB's limit and a row group.
    """
    limits: dict[str, str | int] = {
        "memory_limit": f"{mib}MiB",
        "threads": min(THREADS, os.cpu_count() or 1),
        "temp_directory": str(scratch),
    }
    count = 0
    twice = any_id_twice(shards)
    with (
        target.open("wb") as file,
        in_memory(**limits) as database,
        parquet_writer(file, ROWS_SCHEMA) as writer,
    ):
        dropped = _drop_into(database, shards, left_out, twice)
        for group in _groups(_sorted(database, shards), _rows_a_group(shards)):
            # The cast fails on a null in a column that never has one.
            writer.write_table(group.cast(ROWS_SCHEMA), row_group_size=len(group))
            count += len(group)
    sync(target)
    return count, dropped


def _drop_into(
    database: duckdb.DuckDBPyConnection, shards: Sequence[Path], left_out: RowIds, twice: bool
) -> int:
    """Make the table `dropped` of the places of rows that are not written; return their number."""
    database.execute("create temp table dropped (filename varchar, file_row_number bigint)")
    if twice:
        database.execute(f"insert into dropped {superseded_sql(shards)}")
    if left_out:
        database.register("left_out", pa.table({"row_id": pa.array(list(left_out), pa.string())}))
        places = f"select filename, file_row_number from {placed(shards)} semi join left_out using (row_id)"
        database.execute(f"insert into dropped {places} except select * from dropped")
    ((count,),) = database.execute("select count(*) from dropped").fetchall()
    return int(count)


def _sorted(database: duckdb.DuckDBPyConnection, shards: Sequence[Path]) -> pa.RecordBatchReader:
    rows = database.sql(
        f"select {', '.join(ROWS_SCHEMA.names)} from {placed(shards)}"
        f" anti join dropped using (filename, file_row_number) order by {ORDER}"
    )
    return rows.to_arrow_reader(BATCH)


def _groups(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Row groups of `size`, which is a multiple of the batches' size."""
    together: list[pa.RecordBatch] = []
    for batch in batches:
        together.append(batch)
        if sum(map(len, together)) >= size:
            yield pa.Table.from_batches(together)
            together.clear()
    if together:
        yield pa.Table.from_batches(together)


def _rows_a_group(shards: Sequence[Path]) -> int:
    """DuckDB's size of a row group, or less where the rows are so long that one would fill the memory."""
    files = [pq.read_metadata(shard) for shard in shards]
    groups = [file.row_group(n) for file in files for n in range(file.num_row_groups)]
    a_row = sum(group.total_byte_size for group in groups) / max(1, sum(group.num_rows for group in groups))
    return min(ROW_GROUP, max(BATCH, int(ROW_GROUP_BYTES / max(a_row, 1)) // BATCH * BATCH))
