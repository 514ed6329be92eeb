"""A run's rows as SQL: what to ask DuckDB so that each row is read once, while a run goes on and after.

`rows/*.parquet` is the one glob. A retried row stands in it twice until the next compaction, as an error and
as what came of it, so the view `rows` takes the best of each; after a compaction there is nothing to choose.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vsteer.store import shards as sh
from vsteer.store.database import exact, file_list, quoted
from vsteer.store.sound import sound_shards

CONFIGS, PROMPTS = "configs.parquet", "prompts.parquet"
# Of the rows of one id: a good one before an error, then the latest.
BEST_FIRST = "(status = 'ok') desc, attempt desc, finished_at desc"


def rows_sql(folder: Path) -> str:
    """A SELECT of every row of a run that stands in a sound shard, each once."""
    shards = sound_shards(folder)
    everything = f"select * from read_parquet({parquet_source(shards)})"
    if sh.is_compact(shards):
        return everything
    return f"{everything} qualify row_number() over (partition by row_id order by {BEST_FIRST}) = 1"


def parquet_source(shards: Sequence[Path]) -> str:
    """What `read_parquet` reads for these shards: the glob, or a list where rows/ has other files too."""
    rows = shards[0].parent
    if set(rows.glob("*.parquet")) == set(shards):
        return quoted(exact(rows) + "/*.parquet")
    return file_list(shards)
