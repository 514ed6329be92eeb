"""`vsteer run grid.yaml`: everything that a grid asks for, overnight, into Parquet."""

from pathlib import Path

import click

from vsteer.terminal import echo


@click.command()
@click.argument("grid", type=click.Path(path_type=Path))
@click.option("--fresh", is_flag=True, help="Begin anew; existing rows are moved aside, not deleted.")
@click.option("--retry-errors", is_flag=True, help="Try failed rows again.")
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Start the engines on the Ray cluster there: host:port, or auto for the one that this machine is "
    "in. By default RAY_ADDRESS says where, and a grid of one engine runs without Ray.",
)
@click.option("--dry-run", is_flag=True, help="Only show what it comes to, as `vsteer plan` does.")
def run(grid: Path, fresh: bool, retry_errors: bool, ray: str | None, dry_run: bool) -> None:
    """Run the file GRID into the folder runs/<its name> beside it, or go on with it.

    The same command finishes what was interrupted or killed: a row that stands is never computed again.
    Pressing Ctrl-C once finishes what is under way and writes it, pressing it twice stops at once. Exit
    codes: 0 complete, 3 incomplete (rows failed, or the engine died for good), 130 interrupted.

    \b
    Example:
      vsteer run runs/quickstart.yaml
    """
    if dry_run:
        from vsteer.cli.plan import show

        show(grid, as_json=False)
        return
    from vsteer.cli.layer_curve import layer_curves
    from vsteer.run.start import COMPLETE, INTERRUPTED, run_grid

    outcome = run_grid(grid, fresh=fresh, retry_errors=retry_errors, derive=_statistics, ray=ray)
    if outcome.good:
        echo(layer_curves(outcome.folder))
    echo(f"{outcome.good:,} of {outcome.planned:,} rows are good, {outcome.errors:,} failed")
    echo(f"rows       {outcome.folder}/rows/*.parquet")
    echo(f"vectors    {outcome.folder}/vectors/")
    if outcome.exit_code != COMPLETE:
        again = " --retry-errors" if outcome.errors and outcome.exit_code != INTERRUPTED else ""
        echo(f"next       vsteer run {grid}{again}", err=True)
        raise click.exceptions.Exit(outcome.exit_code)


def _statistics(folder: Path) -> str | None:
    from vsteer.analysis.statistics import bring_up_to_date  # scipy takes a second to import

    return bring_up_to_date(folder)
