"""The fits over the models' sizes for several runs together, which no single run has stored."""

from __future__ import annotations

import json

import duckdb

from vsteer.analysis.scaling import scaling_records
from vsteer.results.statistics_files import TABLES
from vsteer.store.database import quoted, records
from vsteer.store.schema import SQL_TYPES


def scaling_over_runs(database: duckdb.DuckDBPyConnection) -> str | None:
    """The statement that fills the view `scaling`; None where it is filled, or there is no peak to fit.

    The column `run` is null, since the fits belong to no single run. Eight models take half a second a curve,
    so the fits are made only where they are asked for.
    """
    if database.execute("from scaling limit 1").fetchall():
        return None
    fits = scaling_records(records(database, "from peaks"))
    if not fits:
        return None
    columns = {column.name: SQL_TYPES[column.type] for column in TABLES["scaling"]}
    shape = {name: [type_[:-2]] if type_.endswith("[]") else type_ for name, type_ in columns.items()}
    parsed = f"from_json({quoted(json.dumps(fits))}, {quoted(json.dumps([shape]))})"
    return (
        "create or replace temp view scaling as"
        f" select null::VARCHAR as run, record.* from (select unnest({parsed}) as record)"
    )
