"""One run or many as a DuckDB database that the files in `queries/` can be asked of.

Everything is said in SQL (`setup`), so that DuckDB alone can do the same: `vsteer sql --print` prints it.

rows, configs, prompts   the runs' tables, with a column `run`
norms, scores            how long the vectors are, what scorers say; empty where a run has none
intervals, peaks, bands, asymmetries, doses, scaling   the tables of statistics.py; empty where there are none
                         or they were made of other rows (`without_statistics`)
conditions, baselines, effects, item_effects, config_effects, item_lines   see effects.sql
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb

from vsteer.errors import StoreError, UsageError
from vsteer.results.statistics_files import STATISTICS_FOLDER, TABLES, statistics_are_current, statistics_path
from vsteer.store.schema import SQL_TYPES, Column
from vsteer.store.scores import SCORES
from vsteer.store.sound import require_run
from vsteer.store.views import CONFIGS, PROMPTS, exact, file_list, in_memory, quoted, rows_sql

NORMS = "vectors/norms.parquet"
SCORE_FILES = "scores/*.parquet"
# one line an item, not a row
OF_ITEMS = "steerability-"
NO_NORMS = (
    "select null::varchar as run, null::varchar as file, null::varchar as vector_sha256, null::int as layer,"
    " null::double as vector_norm, null::double as stream_norm, null::varchar as made_in_model,"
    " null::varchar as made_in_revision, null::varchar as made_in_sha256, null::int as made_at_layer,"
    " null::varchar as derived limit 0"
)


def connect_runs(folders: Sequence[Path]) -> duckdb.DuckDBPyConnection:
    """A database in memory with every view over the runs.

    Made for the files as they stand: after a compaction, or rows that follow one, connect anew.
    """
    database = in_memory()
    for statement in setup(folders):
        database.execute(statement)
    return database


def setup(folders: Sequence[Path]) -> list[str]:
    """The statements that make the tables and views, in order."""
    runs = run_names(folders)
    tables = {
        "rows": [(run, rows_sql(folder)) for run, folder in runs.items()],
        "configs": [(run, _file(folder, CONFIGS)) for run, folder in runs.items()],
        "prompts": [(run, _file(folder, PROMPTS)) for run, folder in runs.items()],
        "norms": [(run, _file(folder, NORMS)) for run, folder in runs.items() if (folder / NORMS).exists()],
        "scores": [(run, _scores(files)) for run, folder in runs.items() if (files := _score_files(folder))],
    }
    current = {run: folder for run, folder in runs.items() if statistics_are_current(folder)}
    for table in TABLES:
        tables[table] = [
            (run, _file(folder, f"{STATISTICS_FOLDER}/{table}.parquet")) for run, folder in current.items()
        ]
    if len(runs) > 1:
        # a run's own is of its models alone: see analysis/over_runs.py
        tables["scaling"] = []
    empty = {"norms": NO_NORMS} | {
        name: no_rows_of(columns) for name, columns in {"scores": SCORES, **TABLES}.items()
    }
    views = [
        f"create or replace temp view {name} as\n{_together(parts) if parts else empty[name]}"
        for name, parts in tables.items()
    ]
    return [*views, *statements(Path(__file__).with_name("effects.sql").read_text())]


def without_statistics(folders: Sequence[Path]) -> dict[Path, str]:
    """The runs whose statistics are not in the views, and why not."""
    return {
        folder: (
            "were not made of the run as it stands, and are not used"
            if any(statistics_path(folder, table).exists() for table in TABLES)
            else "are not there"
        )
        for folder in folders
        if not statistics_are_current(folder)
    }


def no_rows_of(columns: Sequence[Column]) -> str:
    """A SELECT of no rows that has the columns of a view."""
    named = [("run", "VARCHAR"), *((column.name, SQL_TYPES[column.type]) for column in columns)]
    return f"select {', '.join(f'null::{type_} as {name}' for name, type_ in named)} limit 0"


def statements(text: str) -> list[str]:
    """The statements of a file, which end in a semicolon at a line's end; without its comment lines."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return [
        part.strip() for part in code.replace(";\n", ";\0").rstrip().rstrip(";").split(";\0") if part.strip()
    ]


def run_names(folders: Sequence[Path]) -> dict[str, Path]:
    """What the column `run` says of each: the folder's name, its path where two have the same."""
    if not folders:
        raise UsageError("no run is given", "give the folder of a run, such as runs/quickstart")
    known: dict[Path, Path] = {}
    for folder in folders:
        require_run(folder)
        for name in (CONFIGS, PROMPTS):
            if not (folder / name).exists():
                raise StoreError(f"{folder} has no {name} yet", "the run writes it before its first row")
        if folder.resolve() in known:
            raise UsageError(f"{folder} is given twice", "name each run once")
        known[folder.resolve()] = folder
    names = [path.name for path in known]
    return {
        (path.name if names.count(path.name) == 1 else str(folder)): folder for path, folder in known.items()
    }


def _together(parts: Sequence[tuple[str, str]]) -> str:
    return "\nunion all by name\n".join(
        f"select {quoted(run)} as run, * from ({select})" for run, select in parts
    )


def _file(folder: Path, name: str) -> str:
    return f"select * from read_parquet({quoted(exact(folder / name))})"


def _score_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob(SCORE_FILES) if not file.name.startswith(OF_ITEMS))


def _scores(files: Sequence[Path]) -> str:
    return f"select * from read_parquet({file_list(files)}, union_by_name = true)"
