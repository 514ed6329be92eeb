"""What `vsteer mechanism project` left in a run: the stream's component along a vector at every token.

The query makes shades of the numbers as the terminal does: by their distance from the mean of all tokens but
each text's first, on one scale for the vector and the random one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import duckdb

from vsteer.mechanism.projection import FILE
from vsteer.report.tables import Table, table
from vsteer.store.database import exact, quoted
from vsteer.store.sound import faults_of_tables, set_aside_damaged

PROJECTIONS = """
with tokens as ({files}),
means as (
    select run, layer, avg(projection) as mean, avg(random) as random_mean, stddev_pop(projection) as spread,
           stddev_pop(random) as random_spread
    from tokens where position > 0 group by run, layer
),
scales as (
    select run, layer, coalesce(nullif(quantile_cont(away, 0.95), 0), 1) as whole
    from (select run, layer, unnest([abs(projection - mean), abs(random - random_mean)]) as away
          from tokens join means using (run, layer) where position > 0)
    group by run, layer
)
select run, model, vector, layer, text, steering, position, token, generated, projection, random, mean,
       random_mean, spread, random_spread,
       round(greatest(-1, least(1, (projection - mean) / whole)), 3) as shade,
       round(greatest(-1, least(1, (random - random_mean) / whole)), 3) as random_shade
from tokens join means using (run, layer) join scales using (run, layer)
order by run, layer, text, position"""
NONE = (
    "select '' as run, '' as model, '' as vector, 0 as layer, 0 as text, '' as steering, 0 as position,"
    " '' as token, false as generated, 0.0 as projection, 0.0 as random limit 0"
)


def projections(database: duckdb.DuckDBPyConnection, runs: Mapping[str, Path]) -> Table:
    parts = []
    for run, folder in runs.items():
        path = folder / FILE
        faults = faults_of_tables(folder, {path: None} if path.exists() else {})
        set_aside_damaged(folder, faults, folder, "the report goes without it")
        parts += [
            f"select {quoted(run)} as run, * from read_parquet({quoted(exact(path))})"
            for path, why in faults.items()
            if not why
        ]
    files = "\nunion all by name\n".join(parts) if parts else NONE
    return table(database, PROJECTIONS.format(files=files).strip())
