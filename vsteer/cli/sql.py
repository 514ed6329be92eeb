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
from vsteer.validation import shortened

if TYPE_CHECKING:
    import duckdb

    from vsteer.results.queries import Query

FORMATS = ("table", "csv", "json", "md")
CLI_FLAGS = {"table": "-box", "csv": "-csv", "json": "-json", "md": "-markdown"}
SHELL_HELP = """\
The name of a query runs it; anything else is SQL, which ends in a semicolon, over the views
rows, configs, prompts, norms, kl_doses, scores, cosines, conditions, baselines, effects, item_effects,
item_lines, config_effects, control_effects, control_verdicts, compared, differences, the tables of
statistics: intervals, peaks, bands, asymmetries, doses, scaling, and those of vsteer mechanism:
edges, nodes, positions, dimensions, circuits, circuit_overlaps, freezing, head_values, sparsity.
.list         the queries and what they ask     .about NAME   a query's columns and caveat
.set A=B      set a query's parameter           .help, .quit"""
PROMPT, MORE = "vsteer> ", "   ...> "


@click.command()
@click.argument("names", metavar="[NAME] RUN...", nargs=-1)
@click.option("-c", "--command", metavar="SQL", help="Run this SQL and print its answer.")
@click.option("--format", "shape", type=click.Choice(FORMATS), default="table", help="How rows are printed.")
@click.option("--set", "settings", metavar="A=B", multiple=True, help="A query's parameter; may be repeated.")
@click.option("--print", "print_", is_flag=True, help="Print a duckdb command that does the same.")
@click.option("--list", "list_", is_flag=True, help="List the queries and what they ask.")
@click.option("--about", is_flag=True, help="Print the columns and the caveat of the query NAME.")
def sql(
    names: tuple[str, ...],
    command: str | None,
    shape: str,
    settings: tuple[str, ...],
    print_: bool,
    list_: bool,
    about: bool,
) -> None:
    """Answer the query NAME over the runs in the folders RUN; without NAME, open a shell with their views.

    What is piped into the shell is run to its end, and the exit code is 1 where some of it is wrong.

    \b
    Example:
      vsteer sql layer_peaks runs/quickstart
      vsteer sql sign_asymmetry runs/quickstart runs/other --format csv
      vsteer sql -c "select count(*) from effects" runs/quickstart
    """
    from vsteer.results.queries import parameters_sql, query, script
    from vsteer.results.views import connect_runs
    from vsteer.vectors.run_norms import bring_up_to_date

    if list_:
        echo(listing())
        return
    name, runs = _split(names) if command is None else (None, names)
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
            made = _made_when_asked(database, chosen or command)
            text = script(folders, chosen, parameters, made) + (f"{command};\n" if command else "")
            flag = "-c" if chosen or command else "-cmd"
            echo_data(f"duckdb {CLI_FLAGS[shape]} {flag} {shlex.quote(text)}")
            return
        for statement in parameters_sql(parameters):
            database.execute(statement)
        if chosen or command is not None:
            printer(shape)(answer(database, chosen or command or "", shape))
        elif not shell(database, shape, sys.stdin.isatty()):
            raise click.exceptions.Exit(1)


def _split(names: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """A query's name, if the first word is one, and the folders; a first word that is no folder is a name."""
    from vsteer.results.queries import queries

    if names and (names[0] in queries() or not Path(names[0]).exists()):
        if not Path(names[0]).exists() and ("/" in names[0]):
            raise UsageError(
                f"there is no folder {shortened(names[0])}", "give a query's name, or a run's folder"
            )
        return names[0], names[1:]
    return None, names


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(
            f"--set {shortened(text)} is no parameter", "write it as name=value, such as --set layer=12"
        )
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


def _made_when_asked(database: duckdb.DuckDBPyConnection, asked: Query | str | None) -> list[str]:
    """The statements that fill the views which a query, or typed SQL, reads and no run has stored; or all."""
    from vsteer.analysis.differences import differences_over_runs
    from vsteer.analysis.over_runs import scaling_over_runs
    from vsteer.results.queries import DIFFERENCES, FITS, MADE_WHEN_ASKED, Query

    statements = []
    for need, make in ((FITS, scaling_over_runs), (DIFFERENCES, differences_over_runs)):
        # Typed SQL has no header; what it doesn't read costs a moment and changes nothing.
        text = MADE_WHEN_ASKED[need] if asked is None else asked
        wanted = need in text.needs if isinstance(text, Query) else MADE_WHEN_ASKED[need] in text
        if wanted and (made := make(database)):
            statements.append(made)
    return statements


def listing() -> str:
    from vsteer.results.queries import queries

    found = queries()
    width = max(map(len, found))
    return "\n".join(f"{name:{width}}  {each.question}" for name, each in found.items())


def answer(database: duckdb.DuckDBPyConnection, asked: Query | str, shape: str) -> str:
    """DuckDB's answer to a query, or to what a user typed, in the shape that was asked for."""
    import duckdb

    try:
        for made in _made_when_asked(database, asked):
            database.execute(made)
        result = database.execute(asked if isinstance(asked, str) else asked.sql)
        header = [column[0] for column in result.description or ()]
        return SHAPES[shape](header, result.fetchall())
    except duckdb.Error as error:
        raise UsageError(
            f"DuckDB can't answer: {shortened(str(error), 300)}",
            "`vsteer sql RUN` and .help name the views, --about a query's parameters",
        ) from error


def as_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in plain text; a column that is the same in every row stands once, above it.

    The columns that tell its rows apart, the first ones, lead each part of a table too wide for the terminal.
    """
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
    cells = [[number(row[n], 3) for n in kept] for row in rows]
    distinct = len({tuple(row) for row in cells})
    keys = next(n for n in range(1, len(kept) + 1) if len({tuple(row[:n]) for row in cells}) == distinct)
    table = plain_table([header[n] for n in kept], cells, keys)
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


def shell(database: duckdb.DuckDBPyConnection, shape: str, prompting: bool) -> bool:
    """Read queries' names, SQL and dot commands until there are no more; whether all of them were right."""
    if prompting:
        import readline  # noqa: F401 - input() then has a history

        echo(f"{SHELL_HELP}\n")
    text, ended, right = "", False, True
    while not ended:
        try:
            line = input((MORE if text else PROMPT) if prompting else "")
        except EOFError:
            # what was piped needs no semicolon behind its last statement
            line, ended = "" if prompting else ";", True
        except KeyboardInterrupt:
            text = ""
            echo()
            continue
        text = f"{text}\n{line}".strip()
        if text in (".quit", ".exit"):
            break
        if not text.strip("; \n") or not (text.startswith(".") or text.endswith(";") or " " not in text):
            continue
        try:
            printer(shape)(_reply(database, text.rstrip("; \n"), shape))
        except UsageError as error:
            right = False
            echo(f"error: {error}", err=not prompting)
        except KeyboardInterrupt:
            echo("interrupted", err=True)
        text = ""
    return prompting or right


def _reply(database: duckdb.DuckDBPyConnection, text: str, shape: str) -> str:
    from vsteer.results.queries import parameters_sql, query

    command, _, rest = text.partition(" ")
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
        raise UsageError(f"no command {shortened(command)}", ".help lists them")
    return answer(database, query(text) if text.isidentifier() else text, shape)
