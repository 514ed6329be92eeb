"""The files in `queries/`: which there are, what each asks and needs, and the SQL of one over some runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from vsteer.errors import UsageError
from vsteer.results.views import setup, statements
from vsteer.store.database import quoted

# What a query may need beside the rows: the tables of statistics, and fits over the models of several runs,
# which are made when a query asks for them.
STATISTICS, FITS = "statistics", "fits over models"


@dataclass(frozen=True)
class Query:
    name: str
    text: str  # the whole file

    @property
    def question(self) -> str:
        """Its first line."""
        return self.text.splitlines()[0].removeprefix("--").strip()

    @property
    def about(self) -> str:
        """Its comments: question, parameters, needs, columns, caveat."""
        lines = self.text.splitlines()
        head = lines[: next((n for n, line in enumerate(lines) if not line.startswith("--")), len(lines))]
        return "\n".join(line.removeprefix("--").removeprefix(" ") for line in head)

    @property
    def needs(self) -> frozenset[str]:
        """What the header's line `-- Needs:` lists."""
        lists = [line.removeprefix("Needs:") for line in self.about.splitlines() if line.startswith("Needs:")]
        return frozenset(each.strip() for line in lists for each in line.split(","))

    @property
    def sql(self) -> str:
        (statement,) = statements(self.text)
        return statement


def queries() -> dict[str, Query]:
    """Every query by its name."""
    found = sorted(
        (file for file in files("vsteer.queries").iterdir() if file.name.endswith(".sql")), key=str
    )
    return {
        name: Query(name, file.read_text()) for file in found for name in [file.name.removesuffix(".sql")]
    }


def query(name: str) -> Query:
    known = queries()
    if name not in known:
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"the queries are {', '.join(known)}"
        raise UsageError(f"no query {name!r}", hint)
    return known[name]


def parameters_sql(parameters: Mapping[str, str]) -> list[str]:
    return [f"set variable {name} = {quoted(value)}" for name, value in parameters.items()]


def script(
    folders: Sequence[Path], query: Query | None, parameters: Mapping[str, str], fits: Sequence[str] = ()
) -> str:
    """Everything that DuckDB needs to answer by itself; without a query only what makes the views.

    `fits` are statements that follow those of the views.
    """
    parts = [*setup(folders), *fits, *parameters_sql(parameters), *([query.sql] if query else [])]
    return "".join(f"{part};\n" for part in parts)
