"""`vsteer sql NAME RUN...`: the answer of one run or many to a query of `queries/`, or a shell."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vsteer.cli.plain_table import number, plain_table
from vsteer.errors import UsageError
from vsteer.terminal import echo, echo_data, harmless_json

if TYPE_CHECKING:
    import duckdb

    from vsteer.results.queries import Query

FORMATS = ("table", "csv", "json", "md")
CLI_FLAGS = {"table": "-box", "csv": "-csv", "json": "-json", "md": "-markdown"}
SHELL_HELP = """\
The name of a query runs it; anything else is SQL, which ends in a semicolon, over the views
rows, configs, prompts, norms, scores, conditions, baselines, effects, item_effects, item_lines,
config_effects, control_effects, control_verdicts, and the tables of statistics: intervals, peaks,
bands, asymmetries, doses, scaling.
.list         the queries and what they ask     .about NAME   a query's columns and caveat
.set A=B      set a query's parameter           .help, .quit"""
PROMPT, MORE = "vsteer> ", "   ...> "


@click.command()
@click.argument("names", metavar="[NAME] RUN...", nargs=-1)
@click.option("--format", "shape", type=click.Choice(FORMATS), default="table", help="How rows are printed.")
@click.option("--set", "settings", metavar="A=B", multiple=True, help="A query's parameter; may be repeated.")
@click.option("--print", "print_", is_flag=True, help="Print a duckdb command that does the same.")
@click.option("--list", "list_", is_flag=True, help="List the queries and what they ask.")
@click.option("--about", is_flag=True, help="Print the columns and the caveat of the query NAME.")
def sql(
    names: tuple[str, ...], shape: str, settings: tuple[str, ...], print_: bool, list_: bool, about: bool
) -> None:
    """Answer the query NAME over the runs in the folders RUN; without NAME, open a shell with their views.

    \b
    Example:
      vsteer sql layer_peaks runs/quickstart
      vsteer sql sign_asymmetry runs/quickstart runs/other --format csv
    """
    from vsteer.results.queries import FITS, parameters_sql, query, script
    from vsteer.results.views import connect_runs
    from vsteer.vectors.run_norms import bring_up_to_date

    if list_:
        echo(listing())
        return
    name, runs = _split(names)
    if about:
        if name is None:
            raise UsageError("--about needs a query", "vsteer sql --list lists them")
        echo(query(name).about)
        return
    chosen = query(name) if name is not None else None
    folders = [Path(run) for run in runs]
    parameters = dict(map(_parameter, settings))
    for folder in folders:
        if why := bring_up_to_date(folder):
            echo(f"warning: relative_norm is not known: {why}", err=True)
    with connect_runs(folders) as database:
        _warn_of_statistics(folders, chosen)
        if print_:
            fits = _fits(database) if chosen is None or FITS in chosen.needs else []
            text = script(folders, chosen, parameters, fits)
            echo_data(f"duckdb {CLI_FLAGS[shape]} {'-c' if chosen else '-cmd'} {shlex.quote(text)}")
            return
        for statement in parameters_sql(parameters):
            database.execute(statement)
        if chosen:
            printer(shape)(answer(database, chosen, shape))
        else:
            shell(database, shape, sys.stdin.isatty())


def _split(names: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """A query's name, if the first word is one, and the folders; a first word that is no folder is a name."""
    from vsteer.results.queries import queries

    if names and (names[0] in queries() or not Path(names[0]).exists()):
        if not Path(names[0]).exists() and ("/" in names[0]):
            raise UsageError(f"there is no folder {names[0]}", "give a query's name, or a run's folder")
        return names[0], names[1:]
    return None, names


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--set {text} is no parameter", "write it as name=value, such as --set layer=12")
    return name, value


def _warn_of_statistics(folders: Sequence[Path], chosen: Query | None) -> None:
    """Name the runs without the statistics that the query, or a shell, would read."""
    from vsteer.results.queries import STATISTICS
    from vsteer.results.views import without_statistics

    if chosen and STATISTICS not in chosen.needs:
        return
    for folder, why in without_statistics(folders).items():
        makes = f"vsteer stats {shlex.quote(str(folder))}"
        echo(f"warning: the statistics of {folder} {why}; {makes} makes them", err=True)


def _fits(database: duckdb.DuckDBPyConnection) -> list[str]:
    """The statement that fills the view `scaling` over several runs, where that is still to be done."""
    from vsteer.analysis.over_runs import scaling_over_runs

    made = scaling_over_runs(database)
    return [made] if made else []


def listing() -> str:
    from vsteer.results.queries import queries

    found = queries()
    width = max(map(len, found))
    return "\n".join(f"{name:{width}}  {each.question}" for name, each in found.items())


def answer(database: duckdb.DuckDBPyConnection, asked: Query | str, shape: str) -> str:
    """DuckDB's answer to a query, or to a statement that a user typed, in the shape that was asked for."""
    from vsteer.results.queries import FITS

    if isinstance(asked, str):
        # typed SQL has no header; fits that it doesn't read cost a moment and change nothing
        statement, wants_fits = asked, "scaling" in asked
    else:
        statement, wants_fits = asked.sql, FITS in asked.needs
    for fit in _fits(database) if wants_fits else ():
        database.execute(fit)
    result = database.execute(statement)
    header = [column[0] for column in result.description or ()]
    return SHAPES[shape](header, result.fetchall())


def as_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in plain text; a column that is the same in every row stands once, above it."""
    if not rows:
        return f"no rows; the columns are {', '.join(header)}"
    if len(rows) == 1:
        width = max(map(len, header))
        return "\n".join(
            f"{name:{width}}  {number(cell)}" for name, cell in zip(header, rows[0], strict=True)
        )
    same = [n for n in range(len(header)) if len({repr(row[n]) for row in rows}) == 1]
    shared = [f"{header[n]}: {number(rows[0][n])}" for n in same if rows[0][n] not in ("", None)]
    kept = [n for n in range(len(header)) if n not in same] or list(range(len(header)))
    table = plain_table([header[n] for n in kept], [[number(row[n], 3) for n in kept] for row in rows])
    return "\n".join([*shared, table])


def as_csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    # Python up to 3.12 leaves a carriage return without quotes, which would end the row for readers.
    quoting = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        returns = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (quoting if returns else writer).writerow(["" if cell is None else cell for cell in row])
    return out.getvalue().removesuffix("\n")


def as_json(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    records = [dict(zip(header, row, strict=True)) for row in rows]
    return harmless_json(json.dumps(records, indent=2, default=str, ensure_ascii=False))


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    body = [line(["" if cell is None else number(cell) for cell in row]) for row in rows]
    return "\n".join([line(header), line(["---"] * len(header)), *body])


SHAPES: dict[str, Callable[[Sequence[str], Sequence[Sequence[Any]]], str]] = {
    "table": as_table,
    "csv": as_csv,
    "json": as_json,
    "md": as_markdown,
}


def printer(shape: str) -> Callable[[str], None]:
    """What prints an answer of that shape: CSV has no escapes of its own, and a program reads it."""
    return echo_data if shape == "csv" else echo


def shell(database: duckdb.DuckDBPyConnection, shape: str, prompting: bool) -> None:
    """Read queries' names, SQL and dot commands until there are no more."""
    if prompting:
        import readline  # noqa: F401 - input() then has a history

        echo(f"{SHELL_HELP}\n")
    text = ""
    while True:
        try:
            line = input((MORE if text else PROMPT) if prompting else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            text = ""
            echo()
            continue
        text = f"{text}\n{line}".strip()
        if text in (".quit", ".exit"):
            return
        if not text or not (text.startswith(".") or text.endswith(";") or " " not in text):
            continue
        reply, text = _reply(database, text.rstrip(";").strip(), shape), ""
        printer(shape)(reply)


def _reply(database: duckdb.DuckDBPyConnection, text: str, shape: str) -> str:
    import duckdb

    from vsteer.results.queries import parameters_sql, queries, query

    command, _, rest = text.partition(" ")
    try:
        match command:
            case ".help":
                return SHELL_HELP
            case ".list":
                return listing()
            case ".about":
                return query(rest).about
            case ".set":
                for statement in parameters_sql(dict([_parameter(rest)])):
                    database.execute(statement)
                return ""
        if command.startswith("."):
            return f"error: no command {command}\nhint: .help lists them"
        known = queries()
        if " " not in text and text.isidentifier():
            return answer(database, query(text), shape)
        return answer(database, known.get(text, text), shape)
    except UsageError as error:
        return f"error: {error.message}\nhint: {error.hint}"
    except (duckdb.Error, KeyboardInterrupt) as error:
        return f"error: {error or 'interrupted'}"
