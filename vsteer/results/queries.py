"""The files in `queries/`: which there are, what each asks and needs, and the SQL of one over some runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from vsteer.errors import UsageError
from vsteer.results.views import setup, statements
from vsteer.store.database import quoted
from vsteer.validation import did_you_mean, shown

# What a query may need beside the rows: the tables of statistics, and those of `vsteer mechanism`; and, made
# when a query asks for them, fits over several runs' models, and intervals of what runs or models differ in.
STATISTICS, FITS, DIFFERENCES, MECHANISM = "statistics", "fits over models", "differences", "mechanism"
# The views that these two fill.
MADE_WHEN_ASKED = {FITS: "scaling", DIFFERENCES: "differences"}


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
        hint = did_you_mean(name, known, f"the queries are {', '.join(known)}")
        raise UsageError(f"no query {shown(name)}", hint)
    return known[name]


def parameters_sql(parameters: Mapping[str, str]) -> list[str]:
    return [f"set variable {name} = {quoted(value)}" for name, value in parameters.items()]


def script(
    folders: Sequence[Path], query: Query | None, parameters: Mapping[str, str], made: Sequence[str] = ()
) -> str:
    """Everything that DuckDB needs to answer by itself; without a query only what makes the views.

    `made` are statements that follow those of the views.
    """
    parts = [*setup(folders), *made, *parameters_sql(parameters), *([query.sql] if query else [])]
    return "".join(f"{part};\n" for part in parts)
