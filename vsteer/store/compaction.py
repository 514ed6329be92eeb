"""Many shards into one file: each row once, sorted so that DuckDB can skip what a query doesn't ask for.

The new file is written into rows.new/, and then the folders change places: rows/ becomes rows.old/ and
rows.new/ becomes rows/. So `rows/*.parquet` holds the shards or the new file and never both, and whoever
is killed anywhere leaves rows/ or rows.old/ complete. `recover` goes on from each of these.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from vsteer.errors import StoreError
from vsteer.store import shards as sh
from vsteer.store.files import FULL, disk_errors, parquet_writer, sync_folder
from vsteer.store.schema import ROWS_SCHEMA
from vsteer.store.views import BEST_FIRST, file_list

ORDER = "vector, layer nulls first, multiplier nulls first, prompt_id, row_id"
# DuckDB works in vectors of 2048 rows, and a thread takes a row group: these are the groups it writes itself.
ROW_GROUP = 60 * 2048
ROW_GROUP_BYTES = 256 << 20
MEMORY = "1GB"
THREADS = 4


@dataclass(frozen=True)
class Compacted:
    """What a compaction made."""

    file: Path
    rows: int
    shards: int  # how many files it took the place of
    set_aside: list[sh.SetAside]


def compact(folder: Path) -> Compacted | None:
    """Compact what is in rows/; None where there is nothing to do. Only for who holds the lock."""
    rows, new, old = _folders(folder)
    shards = sh.list_shards(rows)
    with disk_errors(f"compacting {rows}"), _damage_named(shards):
        if sh.is_compact(shards) or not sh.row_count(shards):
            return None
        expected = sh.read_done(shards).standing
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        target = new / sh.compact_name(sh.number_of(shards[-1]) + 1)
        try:
            written = _write_sorted(shards, target, scratch=new / "scratch")
            if written != expected:
                raise RuntimeError(
                    f"compaction would turn {expected} rows into {written}; {rows} is as it was"
                )
            shutil.rmtree(new / "scratch", ignore_errors=True)
            sync_folder(new)
            sync_folder(folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        rows.rename(old)
        new.rename(rows)
        sync_folder(folder)
    moved = _drop(folder, old, {shard.name for shard in shards})
    return Compacted(rows / target.name, written, len(shards), moved)


def recover(folder: Path) -> list[sh.SetAside]:
    """Finish or take back a compaction that was killed; only for who holds the lock."""
    rows, new, old = _folders(folder)
    with disk_errors(f"recovering {rows}"):
        if old.is_dir() and not rows.is_dir():
            old.rename(rows)
            sync_folder(folder)
        if new.is_dir():
            shutil.rmtree(new)
    if not old.is_dir():
        return []
    # Swapped, but not dropped yet. The file that took their place must be there and whole.
    replaced = sh.list_shards(old)
    last = max(map(sh.number_of, replaced), default=0)
    heirs = [shard for shard in sh.list_shards(rows) if shard.name.startswith("compact-")]
    if any(sh.number_of(heir) > last and sh.fault_of(heir) is None for heir in heirs):
        return _drop(folder, old, {shard.name for shard in replaced})
    return [sh.set_aside(folder, old, "a compaction replaced it, and that one's file is not there")]


def _folders(folder: Path) -> tuple[Path, Path, Path]:
    return folder / sh.ROWS_FOLDER, folder / sh.NEW_ROWS_FOLDER, folder / sh.OLD_ROWS_FOLDER


def _drop(folder: Path, old: Path, replaced: set[str]) -> list[sh.SetAside]:
    """Delete the shards that were replaced, and nothing else that somebody may have put beside them."""
    moved = []
    with disk_errors(f"clearing {old}"):
        for path in sorted(old.iterdir()):
            if path.name in replaced and path.is_file():
                path.unlink()
            else:
                moved.append(sh.set_aside(folder, path, "it is not a file of vsteer's"))
        old.rmdir()
        sync_folder(folder)
    return moved


@contextmanager
def _damage_named(shards: Sequence[Path]) -> Iterator[None]:
    """Say which shard is damaged, or that there is no room, where DuckDB or Arrow fail on it."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        for shard in shards:
            if why := sh.fault_of(shard):
                raise StoreError(
                    f"{shard} is damaged: {why}",
                    hint="give the same command again: it sets the file aside and computes its rows anew",
                ) from error
        if isinstance(error, OSError) and error.errno:
            raise
        if isinstance(error, duckdb.OutOfMemoryException) or "space left" in str(error):
            raise StoreError(f"sorting the rows failed: {str(error).splitlines()[0]}", hint=FULL) from error
        raise


def _write_sorted(shards: Sequence[Path], target: Path, scratch: Path) -> int:
    """Write each row once, in order; the number of rows. Memory is DuckDB's limit and a row group."""
    limits = {
        "memory_limit": MEMORY,
        "threads": min(THREADS, os.cpu_count() or 1),
        "temp_directory": str(scratch),
    }
    count = 0
    with target.open("wb") as file, duckdb.connect(config=limits) as database:
        with parquet_writer(file, ROWS_SCHEMA) as writer:
            for batch in _sorted(database, shards):
                # The cast fails on a null in a column that never has one.
                table = pa.Table.from_batches([batch]).cast(ROWS_SCHEMA)
                writer.write_table(table, row_group_size=ROW_GROUP)
                count += len(table)
        file.flush()
        os.fsync(file.fileno())
    return count


def _sorted(database: duckdb.DuckDBPyConnection, shards: Sequence[Path]) -> pa.RecordBatchReader:
    source = f"read_parquet({file_list(shards)}, filename = true, file_row_number = true)"
    database.execute(
        f"create temp table superseded as select filename, file_row_number from {source}"
        f" qualify row_number() over (partition by row_id order by {BEST_FIRST}) > 1"
    )
    rows = database.sql(
        f"select {', '.join(ROWS_SCHEMA.names)} from {source}"
        f" anti join superseded using (filename, file_row_number) order by {ORDER}"
    )
    return rows.to_arrow_reader(_rows_a_group(shards))


def _rows_a_group(shards: Sequence[Path]) -> int:
    """Row groups as DuckDB likes them, smaller where the rows are so long that one would fill the memory."""
    files = [pq.read_metadata(shard) for shard in shards]
    groups = [file.row_group(n) for file in files for n in range(file.num_row_groups)]
    a_row = sum(group.total_byte_size for group in groups) / max(1, sum(group.num_rows for group in groups))
    return max(1, min(ROW_GROUP, int(ROW_GROUP_BYTES / max(a_row, 1))) // 2048) * 2048
