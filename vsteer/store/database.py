"""A DuckDB database in memory, and names and paths as its SQL takes them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb


def in_memory(**config: str | int) -> duckdb.DuckDBPyConnection:
    """A database in memory. Its progress bar would be drawn into what is piped to a file.

    What its memory can't hold it puts into a folder of its own among the system's temporary files, which goes
    when it is closed. It keeps the footers of Parquet files: a run that goes on has a thousand of them.
    """
    scratch = Path(os.environ.get("TMPDIR") or "/tmp", f"vsteer-{secrets.token_hex(8)}")
    database = duckdb.connect(config={"temp_directory": str(scratch), **config})
    database.execute("set parquet_metadata_cache = true")
    # In Jupyter without ipywidgets it is off, and DuckDB refuses to set it at all.
    if database.execute("select current_setting('enable_progress_bar')").fetchall() != [(False,)]:
        database.execute("set enable_progress_bar = false")
    return database


def records(database: duckdb.DuckDBPyConnection, sql: str, **values: Any) -> list[dict[str, Any]]:
    """What a statement answers, each row by its columns' names."""
    result = database.execute(sql, values or None)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def exact(path: Path) -> str:
    """A path as DuckDB takes it, where nothing in its name is a glob."""
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in str(path))


def file_list(paths: Iterable[Path]) -> str:
    return "[" + ", ".join(quoted(exact(path)) for path in paths) + "]"
