"""A DuckDB database in memory, and names and paths as its SQL takes them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import duckdb


def in_memory(**config: str | int) -> duckdb.DuckDBPyConnection:
    """A database in memory. Its progress bar would be drawn into what is piped to a file."""
    database = duckdb.connect(config=config)
    # In Jupyter without ipywidgets it is off, and DuckDB refuses to set it at all.
    if database.execute("select current_setting('enable_progress_bar')").fetchall() != [(False,)]:
        database.execute("set enable_progress_bar = false")
    return database


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def exact(path: Path) -> str:
    """A path as DuckDB takes it, where nothing in its name is a glob."""
    return "".join(f"[{letter}]" if letter in "[*?" else letter for letter in str(path))


def file_list(paths: Iterable[Path]) -> str:
    return "[" + ", ".join(quoted(exact(path)) for path in paths) + "]"
