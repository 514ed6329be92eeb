"""What extraction left beside a run's vectors: components, cosines, how good each direction is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import duckdb

from vsteer.report.tables import Table, table
from vsteer.store.database import exact, quoted
from vsteer.store.sound import faults_of_tables, set_aside_damaged

FOLDER = "vectors"
# How a run names the file of a vector that it extracted.
EXTRACTED = re.compile(r"(?P<vector>.+)-extracted-[0-9a-f]{12}")
# A page holds so many points, all layers together.
MOST_POINTS = 40_000
FEWEST_MEMBERS = 40

PCA = """
with members as (
    select *, dense_rank() over (partition by run, file order by md5(item_id), item_id) as chosen,
           count(*) over (partition by run, file, layer) as members
    from ({files})
)
select run, vector, model, layer, item_id, positive, letter, round(pc1, 3) as pc1, round(pc2, 3) as pc2,
       members
from members where chosen <= {items} order by run, vector, model, file, layer, chosen, positive
"""
COSINES = """
select run, vector, model, layer, other_layer, round(cosine, 3) as cosine
from ({files}) where layer <= other_layer order by all
"""
LAYERS = "select * exclude (file) from ({files}) order by run, vector, model, layer"
NONE = {
    "pca": "null::int as layer, null as item_id, null as positive, null as letter, 0.0 as pc1, 0.0 as pc2",
    "cosine": "null::int as layer, null::int as other_layer, 0.0 as cosine",
    "layers": "null::int as layer",
}


def diagnostics(database: duckdb.DuckDBPyConnection, runs: Mapping[str, Path]) -> dict[str, Table]:
    """`pca`, `cosine` and `layers` over all runs, with each vector's name and model."""
    found = {}
    for kind, sql in (("pca", PCA), ("cosine", COSINES), ("layers", LAYERS)):
        files = _together(runs, kind)
        items, note = _items(database, files) if kind == "pca" else (0, "")
        found[kind] = table(database, sql.format(files=files, items=items).strip(), note=note)
    return found


def _together(runs: Mapping[str, Path], kind: str) -> str:
    """The tables of one kind as a SELECT, with the columns run, file, vector and model."""
    parts = []
    for run, folder in runs.items():
        faults = faults_of_tables(folder, dict.fromkeys(sorted((folder / FOLDER).glob(f"*.{kind}.parquet"))))
        set_aside_damaged(folder, faults, folder, "the report goes without it")
        for path in (path for path, why in faults.items() if not why):
            stem = path.name.removesuffix(f".{kind}.parquet")
            named = EXTRACTED.fullmatch(stem)
            model = (
                f"(select any_value(made_in_model) from norms n where n.run = {quoted(run)}"
                f" and n.file = {quoted(stem + '.safetensors')})"
            )
            parts.append(
                f"select {quoted(run)} as run, {quoted(stem)} as file,"
                f" {quoted(named['vector'] if named else stem)} as vector, {model} as model, *"
                f" from read_parquet({quoted(exact(path))})"
            )
    nothing = f"select '' as run, '' as file, '' as vector, '' as model, {NONE[kind]} limit 0"
    return "\nunion all by name\n".join(parts) if parts else nothing


def _items(database: duckdb.DuckDBPyConnection, files: str) -> tuple[int, str]:
    """How many items of each vector are drawn, and a note where some are left out."""
    sizes = database.execute(
        f"select count(distinct item_id) as items, count(*) from ({files}) group by run, file"
    ).fetchall()
    points = sum(count for _, count in sizes)
    if points <= MOST_POINTS:
        return 2**31 - 1, ""
    largest = max(items for items, _ in sizes)
    items = max(FEWEST_MEMBERS, largest * MOST_POINTS // points)
    return items, f"at most {items:,} items of each vector are drawn, chosen by the hash of their ids"
