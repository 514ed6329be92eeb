"""A run in a notebook: started or opened, asked in SQL, drawn."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsteer.errors import UsageError
from vsteer.store.sound import require_run
from vsteer.store.status import Status, status

if TYPE_CHECKING:
    from vsteer.api.answer import Answer
    from vsteer.grid.spec import Grid


class Run:
    """A run's folder, with what is asked of it most."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = require_run(Path(folder))

    @property
    def status(self) -> Status:
        """Where the run stands now; nothing is disturbed if it is still under way."""
        return status(self.folder)

    def sql(self, query: str, **parameters: object) -> Answer:
        """Ask a query by its name, such as `layer_peaks`, or in SQL over the run's views.

        `parameters` are those of the query; `vsteer sql --about NAME` lists them and its columns.
        """
        import duckdb

        from vsteer.api.answer import Answer
        from vsteer.results.queries import STATISTICS, parameters_sql
        from vsteer.results.queries import query as named
        from vsteer.results.views import connect_runs, without_statistics
        from vsteer.vectors.run_norms import bring_up_to_date

        chosen = named(query) if query.isidentifier() else None
        if fault := bring_up_to_date(self.folder):
            warnings.warn(f"relative_norm is not known: {fault}", stacklevel=2)
        if chosen and STATISTICS in chosen.needs:
            for why in without_statistics([self.folder]).values():
                warnings.warn(f"its statistics {why}; vsteer stats {self.folder} makes them", stacklevel=2)
        with connect_runs([self.folder]) as database:
            try:
                for setting in parameters_sql({name: str(value) for name, value in parameters.items()}):
                    database.execute(setting)
                relation = database.sql(chosen.sql if chosen else query)
                if relation is None:
                    raise UsageError("the SQL answers nothing", "write a SELECT")
                return Answer(relation.to_arrow_table())
            except duckdb.Error as error:
                hint = "look at the SQL or the parameters; `vsteer sql --about NAME` lists a query's"
                raise UsageError(f"DuckDB can't answer it: {error}", hint) from None

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report, one HTML page, into the run's folder or to `out`; returns its path."""
        from vsteer.report.page import write_report

        return write_report([self.folder], None if out is None else Path(out))

    def __repr__(self) -> str:
        now = self.status
        planned = "an unknown number of" if now.planned is None else f"{now.planned:,}"
        failed = f", {now.errors:,} failed" if now.errors else ""
        return f"<run {self.folder}: {now.done:,} of {planned} rows{failed}>"


def open_run(folder: str | Path) -> Run:
    """A run that exists, such as `runs/quickstart`."""
    return Run(folder)


def run(
    grid: Grid | Mapping[str, Any] | str | Path,
    *,
    folder: str | Path = ".",
    fresh: bool = False,
    retry_errors: bool = False,
    progress: bool = False,
    ray: str | None = None,
) -> Run:
    """Run a grid, or go on with it: a YAML file, or a dictionary of what would stand in one.

    Of a dictionary, `folder` holds the data that it names, and gets `runs/<its name>`. `fresh` begins anew
    and moves existing rows aside; `retry_errors` tries failed rows again. `ray` is the address
    of a Ray cluster for the engines of a grid that wants several.
    """
    from rich.console import Console

    from vsteer.analysis.statistics import bring_up_to_date
    from vsteer.grid.spec import as_grid
    from vsteer.run.start import INTERRUPTED, run_grid

    outcome = run_grid(
        as_grid(grid, folder),
        fresh=fresh,
        retry_errors=retry_errors,
        derive=bring_up_to_date,
        console=Console(stderr=True, quiet=not progress),
        ray=ray,
    )
    if outcome.exit_code == INTERRUPTED:
        raise KeyboardInterrupt
    if outcome.fault:
        raise outcome.fault
    if outcome.errors:
        warnings.warn(f"{outcome.errors:,} rows failed: `.sql('failures')` says why", stacklevel=2)
    return Run(outcome.folder)
