"""A run's rows as SQL: what to ask DuckDB so that each row is read once, while a run goes on and after.

A retried row stands in rows/ twice until the next compaction, as an error and as what came of it. Whoever
reads takes the best of each, and looks for it only where some id stands twice: a window over all rows costs
more than most queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vsteer.store import shards as sh
from vsteer.store.database import file_list, in_memory
from vsteer.store.schema import ROWS_SCHEMA, SQL_TYPES
from vsteer.store.sound import note_distinct, noted_distinct, sound_shards, steadily

CONFIGS, PROMPTS = "configs.parquet", "prompts.parquet"
# beside the vectors
KL_DOSES = "vectors/kl_doses.parquet"
# Among the rows of one id: a good one before an error, then the latest.
BEST_FIRST = "(status = 'ok') desc, attempt desc, finished_at desc"


def rows_sql(folder: Path) -> str:
    """A SELECT of every row of a run that stands in a sound shard, each once."""
    return steadily(folder, lambda _: _rows_sql(folder, sound_shards(folder)))


def _rows_sql(folder: Path, shards: Sequence[Path]) -> str:
    if sh.is_compact(shards) or _distinct(folder, shards):
        return f"select * from {read_rows(shards)}"
    return (
        f"select * exclude (filename, file_row_number) from {placed(shards)}"
        f" anti join ({superseded_sql(shards)}) using (filename, file_row_number)"
    )


def placed(shards: Sequence[Path]) -> str:
    """What SQL selects from to know where each row stands: `filename` and `file_row_number`."""
    return read_rows(shards, ", filename = true, file_row_number = true")


def read_rows(shards: Sequence[Path], options: str = "") -> str:
    """What SQL selects all rows of these shards from, those of an earlier version too."""
    parts: dict[str, list[Path]] = {}
    for shard in shards:
        # A file is written by a later version than those of a smaller number.
        lacks = "" if "" in parts else lacking_sql(shard, ROWS_SCHEMA)
        parts.setdefault(lacks, []).append(shard)
    read = [f"select *{lacks} from read_parquet({file_list(some)}{options})" for lacks, some in parts.items()]
    if list(parts) == [""]:
        return f"read_parquet({file_list(shards)}{options})"
    return f"({' union all by name '.join(read)})"


def lacking_sql(path: Path, schema: pa.Schema) -> str:
    """What a file of an earlier version lacks, for a SELECT: `, null::BOOLEAN as condition_met`."""
    there = set(pq.read_schema(path).names)
    return "".join(
        f", null::{SQL_TYPES[field.type]} as {field.name}" for field in schema if field.name not in there
    )


def superseded_sql(shards: Sequence[Path]) -> str:
    """A SELECT of the places of the rows that don't count, since a better one has their id."""
    source = placed(shards)
    # The window sees no row but those whose hash stands more than once, few or none.
    return (
        f"select filename, file_row_number from {source} where hash(row_id) in"
        f" (select hash(row_id) from {source} group by all having count(*) > 1)"
        f" qualify row_number() over (partition by row_id order by {BEST_FIRST}) > 1"
    )


def _distinct(folder: Path, shards: Sequence[Path]) -> bool:
    if noted_distinct(folder, shards):
        return True
    if any_id_twice(shards):
        return False
    note_distinct(folder, shards)
    return True


def any_id_twice(shards: Sequence[Path]) -> bool:
    """Whether some id may stand more than once: by 64 bits of each, in 8 bytes a row."""
    rows, end = f"read_parquet({file_list(shards)})", 0
    try:
        with in_memory() as database:
            ((count,),) = database.execute(f"select count(*) from {rows}").fetchall()
            hashes = np.empty(count, np.uint64)
            found = database.sql(f"select hash(row_id) as h from {rows}")
            for batch in found.to_arrow_reader(1 << 17):
                end += len(batch)
                hashes[end - len(batch) : end] = batch["h"].to_numpy()
    except duckdb.IOException as error:
        if missing := next((shard for shard in shards if not shard.exists()), None):
            # a compaction took it away in the middle
            raise FileNotFoundError(str(missing)) from error
        raise
    hashes.sort()
    return bool((hashes[1:] == hashes[:-1]).any())
