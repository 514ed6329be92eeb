"""One run or several as a DuckDB database: the views that the files in `queries/` and all other readers ask.

All of it is SQL (`setup`), so that DuckDB alone can do the same: `vsteer sql --print` prints it.

runs                     the runs' names, and their places in the order in which they were given
rows, configs, prompts   the runs' tables, with a column `run`
norms, scores            how long the vectors are; what scorers found in the rows as they now stand
kl_doses                 the multipliers that were found for doses
rounding                 effects in 16 bits beside the same ones in float32
cosines                  how far prompts' unsteered streams point along the vectors of conditions
edges, nodes, positions, dimensions, circuits, circuit_overlaps, freezing, head_values, sparsity   what
                         `vsteer mechanism` put into mechanism/ beside a run's rows
intervals, peaks, bands, asymmetries, doses, scaling   the tables of statistics_files.py, where a run has them
                         and they were made of its rows as they stand (`without_statistics`)
differences              intervals between runs or models, once something asks for them
conditions, baselines, effects, item_effects, config_effects, item_lines, control_effects, control_verdicts,
compared, task_metrics, task_means   the views of effects.sql
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from vsteer.errors import StoreError, UsageError
from vsteer.results.statistics_files import (
    ENOUGH_CONTROLS,
    TABLES,
    statistics_are_current,
    statistics_path,
    why_no_statistics,
)
from vsteer.store import mechanism
from vsteer.store.cosines import COSINES_FILE, COSINES_SCHEMA
from vsteer.store.database import exact, in_memory, quoted
from vsteer.store.rounding import ROUNDING_FILE, ROUNDING_SCHEMA
from vsteer.store.schema import (
    CONFIGS_SCHEMA,
    FLOAT,
    INT,
    KL_DOSES_SCHEMA,
    NORMS_SCHEMA,
    PROMPTS_SCHEMA,
    SQL_TYPES,
    STRING,
    arrow_schema,
)
from vsteer.store.scores import SCORES, SCORES_SCHEMA, sound_scores
from vsteer.store.sound import faults_of_tables, require_run, set_aside_damaged
from vsteer.store.views import CONFIGS, KL_DOSES, PROMPTS, lacking_sql, rows_sql

NORMS = "vectors/norms.parquet"
# What two configurations differ in, which is worked out when it is asked for: see analysis/differences.py.
DIFFERENCES_SCHEMA = pa.schema(
    {
        "condition": INT,
        "other": INT,
        "measure": STRING,
        "mean": FLOAT,
        "low": FLOAT,
        "high": FLOAT,
        "se": FLOAT,
        "p_value": FLOAT,
        "why": STRING,
    }
)
# What a run has beside its shards and scores, with its columns.
SCHEMAS = {
    CONFIGS: CONFIGS_SCHEMA,
    PROMPTS: PROMPTS_SCHEMA,
    NORMS: NORMS_SCHEMA,
    KL_DOSES: KL_DOSES_SCHEMA,
    ROUNDING_FILE: ROUNDING_SCHEMA,
    COSINES_FILE: COSINES_SCHEMA,
}


def connect_runs(folders: Sequence[Path]) -> duckdb.DuckDBPyConnection:
    """A database in memory with every view over the runs.

    It is made for the files as they stand: connect anew after a compaction, or when rows follow one.
    """
    made = setup(folders)
    database = in_memory()
    with readable(folders[0]):
        for statement in made:
            database.execute(statement)
    return database


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn what DuckDB and Arrow report of a run's files into a StoreError."""
    try:
        yield
    except (duckdb.CatalogException, duckdb.BinderException, duckdb.ParserException):
        raise  # our own mistake
    except duckdb.OutOfMemoryException as error:
        raise StoreError(
            f"the rows of {folder} take more room than there is: {str(error).splitlines()[0][:200]}",
            hint="free some memory or disk, or set TMPDIR to a folder where temporary files have room",
        ) from error
    except (duckdb.Error, pa.ArrowException) as error:
        raise StoreError(
            f"the rows or scores in {folder} can't be read: {str(error).splitlines()[0][:200]}",
            hint="if the run goes on, give the same command again; if a file is damaged, `vsteer run` sets it"
            " aside, and a file in scores/ can be deleted",
        ) from error


def setup(folders: Sequence[Path]) -> list[str]:
    """The statements that make the tables and views, in order."""
    runs = run_names(folders)
    tables = {
        "rows": [(run, rows_sql(folder)) for run, folder in runs.items()],
        "configs": [(run, _file(folder / CONFIGS, CONFIGS_SCHEMA)) for run, folder in runs.items()],
        "prompts": [(run, _file(folder / PROMPTS)) for run, folder in runs.items()],
        "norms": [(run, _file(folder / NORMS)) for run, folder in runs.items() if _sound(folder, NORMS)],
    }
    derived = (("rounding", ROUNDING_FILE), ("cosines", COSINES_FILE), ("kl_doses", KL_DOSES))
    for table, name in derived:
        tables[table] = [(run, _file(folder / name)) for run, folder in runs.items() if _sound(folder, name)]
    current = {run: folder for run, folder in runs.items() if statistics_are_current(folder)}
    for table in TABLES:
        tables[table] = [(run, _file(statistics_path(folder, table))) for run, folder in current.items()]
    for table in mechanism.TABLES:
        tables[table] = [
            (run, _file(file))
            for run, folder in runs.items()
            for file in mechanism.sound_tables(folder, table)
        ]
    if len(runs) > 1:
        # a run's own is of its models alone: see analysis/over_runs.py
        tables["scaling"] = []
    empty = {name: _no_rows_of(arrow_schema(name, columns)) for name, columns in TABLES.items()}
    empty |= {name: _no_rows_of(schema) for name, schema in mechanism.SCHEMAS.items()}
    empty |= {"norms": _no_rows_of(NORMS_SCHEMA), "rounding": _no_rows_of(ROUNDING_SCHEMA)}
    empty["cosines"] = _no_rows_of(COSINES_SCHEMA)
    empty["kl_doses"] = _no_rows_of(KL_DOSES_SCHEMA)
    selects = {name: _together(parts) if parts else empty[name] for name, parts in tables.items()}
    selects["scores"] = _scores(runs)
    selects["differences"] = _no_rows_of(DIFFERENCES_SCHEMA)
    names = ", ".join(f"({quoted(run)}, {place})" for place, run in enumerate(runs))
    selects["runs"] = f"select * from (values {names}) given(run, place)"
    return [
        *(f"create or replace temp view {name} as\n{select}" for name, select in selects.items()),
        f"create or replace temp macro enough_controls() as {ENOUGH_CONTROLS}",
        *statements(Path(__file__).with_name("effects.sql").read_text()),
    ]


def without_statistics(folders: Sequence[Path]) -> dict[Path, str]:
    """The runs whose statistics are not in the views, and why not."""
    return {folder: why for folder in folders if (why := why_no_statistics(folder))}


def statements(text: str) -> list[str]:
    """The statements of a file, which end in a semicolon at a line's end; without its comment lines."""
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
    return [
        part.strip() for part in code.replace(";\n", ";\0").rstrip().rstrip(";").split(";\0") if part.strip()
    ]


def run_names(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by what the column `run` calls them: their names, or their paths where two share a name."""
    if not folders:
        raise UsageError("no run is given", "give the folder of a run, such as runs/quickstart")
    known: dict[Path, Path] = {}
    for folder in folders:
        require_run(folder)
        for name in (CONFIGS, PROMPTS):
            if not (folder / name).exists():
                raise StoreError(f"{folder} has no {name} yet", "the run writes it before its first row")
            if not _readable(folder, name):
                raise StoreError(f"{folder / name} is damaged", "the same `vsteer run` writes it anew")
        if folder.resolve() in known:
            raise UsageError(f"{folder} is given twice", "name each run once")
        known[folder.resolve()] = folder
    names = [path.name for path in known]
    return {
        (path.name if names.count(path.name) == 1 else str(folder)): folder for path, folder in known.items()
    }


def _no_rows_of(schema: pa.Schema) -> str:
    """A SELECT of no rows that has the columns of a view."""
    named = [("run", "VARCHAR"), *((column.name, SQL_TYPES[column.type]) for column in schema)]
    return f"select {', '.join(f'null::{type_} as {name}' for name, type_ in named)} limit 0"


def _together(parts: Sequence[tuple[str, str]]) -> str:
    return "\nunion all by name\n".join(
        f"select {quoted(run)} as run, * from ({select})" for run, select in parts
    )


def _readable(folder: Path, name: str) -> bool:
    return list(faults_of_tables(folder, {folder / name: SCHEMAS[name]}).values()) == [None]


def _sound(folder: Path, name: str) -> bool:
    """Whether a derived table is there and can be read; one that can't is set aside, with a warning."""
    faults = faults_of_tables(folder, {folder / name: SCHEMAS[name]})
    set_aside_damaged(folder, faults, folder, "the figures go without it until it is made anew")
    return list(faults.values()) == [None]


def _file(path: Path, schema: pa.Schema | None = None) -> str:
    """A SELECT of a table, and of its schema's columns that an earlier version left out."""
    lacks = lacking_sql(path, schema) if schema else ""
    return f"select *{lacks} from read_parquet({quoted(exact(path))})"


def _scores(runs: dict[str, Path]) -> str:
    """The scores of rows as they now stand: not those of a text that is gone or was computed again since."""
    files = [(run, _file(file)) for run, folder in runs.items() for file in sound_scores(folder)]
    # with the columns of SCORES, whatever else lies in the folder
    parts = [f"({_no_rows_of(SCORES_SCHEMA)})", *([_together(files)] if files else [])]
    columns = ", ".join(column.name for column in SCORES)
    return (
        f"select run, {columns} from ({' union all by name '.join(parts)}) s\n"
        "semi join rows r on r.run = s.run and r.row_id = s.row_id and r.finished_at = s.row_finished_at"
    )
