"""What the page is drawn from: a query's answer in columns, with the SQL that gave it.

A figure, its CSV and the SQL behind a click all come from one `Table`, so that they show the same.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from vsteer.results.queries import Query, query

# A page leaves out further rows, and says so.
MOST_ROWS = 30_000
# Slopes, one for each item and layer, are most of a large page.
MOST_SLOPES = 10_000
# Six digits are enough for any figure; `vsteer sql` gives all.
DIGITS = 6


@dataclass(frozen=True)
class Table:
    """`columns` are lists of equal length, by name."""

    columns: dict[str, list[Any]]
    sql: str
    about: str = ""
    command: str = ""
    note: str = ""  # what was left out, and by which rule

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def as_json(self) -> dict[str, Any]:
        return {
            "columns": {name: coded(values) for name, values in self.columns.items()},
            "length": len(self),
            "sql": self.sql,
            "about": self.about,
            "command": self.command,
            "note": self.note,
        }


def coded(values: Sequence[Any]) -> dict[str, Any]:
    """A column as JSON: its values, or, where many are alike, each value once and where it stands."""
    plain = [plain_value(value) for value in values]
    known = {repr(value): value for value in plain}
    if len(plain) < 8 or 2 * len(known) > len(plain):
        return {"values": plain}
    place = {key: number for number, key in enumerate(known)}
    return {"different": list(known.values()), "which": [place[repr(value)] for value in plain]}


def plain_value(value: Any) -> Any:
    """A value as JSON can hold it: no NaN and no infinity, six digits, times as text."""
    match value:
        case float():
            return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
        case datetime():
            return value.isoformat(timespec="seconds")
        case list() | tuple():
            return [plain_value(each) for each in value]
        case None | bool() | int() | str():
            return value
        case _:
            return str(value)


def table(
    database: duckdb.DuckDBPyConnection, sql: str, values: Mapping[str, Any] | None = None, **more: str
) -> Table:
    """A statement's answer, up to the most rows that a page holds."""
    result = database.execute(sql, values)
    header = [column[0] for column in result.description or ()]
    rows = result.fetchmany(MOST_ROWS)
    left_out = 0
    while more_rows := result.fetchmany(MOST_ROWS):
        left_out += len(more_rows)
    if left_out:
        more["note"] = f"the first {len(rows):,} of {len(rows) + left_out:,} rows" + (
            f"; {more['note']}" if more.get("note") else ""
        )
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in header]
    return Table(dict(zip(header, columns, strict=True)), sql, **more)


# What a curve over KL doses has in the multipliers' place: the dose, with the multiplier's sign.
BY_DOSE = """\
select * replace (coalesce(sign({sign}) * kl, multiplier) as multiplier), multiplier as found_multiplier
from (
{sql}
)"""


def answer(
    database: duckdb.DuckDBPyConnection, name: str, folders: Sequence[Path], by_dose: bool = False
) -> Table:
    """A query's answer; with `by_dose` KL doses in the place of multipliers."""
    of = query(name)
    found = table(database, of.sql, about=of.about, command=command(name, folders))
    if not by_dose or not {"kl", "multiplier"} <= found.columns.keys():
        return found
    sql = BY_DOSE.format(sql=of.sql, sign="level" if "level" in found.columns else "multiplier")
    return table(database, sql, about=of.about, command=command(name, folders))


ITEMS_OF_THE_LARGEST = """
with everything as (
{sql}
),
sizes as (
    select run, model, evaluation, system, vector, norm, positions, operation, layers, count(*) as items,
           abs(avg(slope)) as size
    from everything group by all
),
kept as (select * from sizes qualify sum(items) over (order by size desc, hash(sizes)) <= {most})
select e.* from everything e semi join kept
using (run, model, evaluation, system, vector, norm, positions, operation, layers)
"""


def item_slopes(database: duckdb.DuckDBPyConnection, folders: Sequence[Path]) -> Table:
    """Every item's slope; where they are too many, those of the layers that move the answers most."""
    of = query("item_slopes")
    count = _count(database, of)
    if count <= MOST_SLOPES:
        return answer(database, of.name, folders)
    sql = ITEMS_OF_THE_LARGEST.format(sql=of.sql, most=MOST_SLOPES)
    found = table(database, sql)
    note = f"{len(found):,} of {count:,} rows: those of the layers with the largest |mean slope|"
    return Table(found.columns, sql, of.about, command(of.name, folders), note)


def _count(database: duckdb.DuckDBPyConnection, of: Query) -> int:
    (count,) = database.execute(f"select count(*) from ({of.sql})").fetchone() or (0,)
    return int(count)


def command(name: str, folders: Sequence[Path]) -> str:
    return " ".join(["vsteer sql", name, *(shlex.quote(str(folder)) for folder in folders)])
