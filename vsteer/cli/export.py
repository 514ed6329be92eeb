"""`vsteer export RUN -o FILE`: every row of a run as CSV or JSON Lines, for programs without Parquet."""

from __future__ import annotations

from pathlib import Path

import click

from vsteer.errors import StoreError, UsageError
from vsteer.terminal import echo


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", required=True, metavar="FILE", type=click.Path(path_type=Path), help="A .csv or .jsonl."
)
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
def export(run: Path, out: Path, force: bool) -> None:
    """Write every row of the run RUN to FILE, which ends in .csv or .jsonl; columns as in rows/*.parquet.

    Each row is written once, failed ones too, whether the run has ended or not. Times are UTC. In CSV a list
    is a JSON array and an empty cell is null; an infinite number is inf there, and Infinity in JSON.

    \b
    Example:
      vsteer export runs/quickstart -o rows.csv
    """
    written = write_rows(run, out, force)
    echo(f"{written:,} rows   {out}")


def write_rows(run: Path, out: Path, force: bool = False) -> int:
    """Stream the rows into the file, which is whole or not there; the number of rows."""
    import duckdb

    from vsteer.files import new_file
    from vsteer.results.views import readable
    from vsteer.store.database import in_memory, quoted
    from vsteer.store.schema import FLOATS, INTS, ROWS, STRINGS, TIME
    from vsteer.store.views import rows_sql
    from vsteer.validation import shortened

    kinds = {".csv": "format csv, header true, nullstr ''", ".jsonl": "format json, array false"}
    if out.suffix not in kinds:
        raise UsageError(f"{out} ends in neither .csv nor .jsonl", "the ending says what is written")
    as_text = {INTS, STRINGS, FLOATS} if out.suffix == ".csv" else set()
    parts = []
    for column in ROWS:
        if column.type in as_text:
            parts.append(f"to_json({column.name})::varchar as {column.name}")
        elif column.type == TIME:
            parts.append(f"strftime({column.name}, '%Y-%m-%dT%H:%M:%S.%fZ') as {column.name}")
        else:
            parts.append(column.name)
    source = rows_sql(run)
    # Several threads would keep what they have written until its turn comes: gigabytes, and no faster.
    with (
        readable(run),
        in_memory(threads=1) as database,
        new_file(out, StoreError, overwrite=force) as temporary,
    ):
        try:
            rows = f"select {', '.join(parts)} from ({source})"
            to = quoted(str(temporary))
            (count,) = database.execute(f"copy ({rows}) to {to} ({kinds[out.suffix]})").fetchone() or (0,)
        except duckdb.IOException as error:
            if temporary.name not in str(error) and "space left" not in str(error):
                raise  # it is about what is read
            raise StoreError(
                f"could not write {out}: {shortened(str(error), 200)}", "is there room on the disk?"
            ) from error
    return int(count)
