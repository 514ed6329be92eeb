"""`vsteer stats RUN`: a run's statistics, worked out of its rows."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vsteer.terminal import echo


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def stats(run: Path, as_json: bool) -> None:
    """Work out the statistics of the run in the folder RUN from its choice rows, into RUN/statistics/.

    They are intervals over items, held-out peaks, bands of controls, asymmetries, dose curves and fits over
    models' sizes. A run that ends has written them; this makes them anew, for example after an interruption.
    `vsteer sql` and `vsteer report` show them.

    \b
    Example:
      vsteer stats runs/quickstart
    """
    from vsteer.analysis.statistics import write_statistics

    done = write_statistics(run)
    if as_json:
        echo(json.dumps({"rows": dict(done.rows), "folder": str(done.folder)}, indent=2))
    else:
        rows = ", ".join(f"{count:,} {name}" for name, count in done.rows.items())
        echo(f"statistics: {rows}: {done.folder}/")
