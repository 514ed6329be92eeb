"""`vsteer report RUN...`: what a run found, or several, as one HTML file to be looked at."""

from pathlib import Path

import click


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", metavar="FILE", type=click.Path(path_type=Path), help="File to write.")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Draw the runs in the folders RUN as one HTML file, by default RUN/report.html of the first.

    It needs no network and no other file. What it shows is what `vsteer sql` answers: each figure has its SQL
    and its numbers as CSV behind a click. Several runs are set side by side, such as models of several sizes.

    \b
    Example:
      vsteer report runs/quickstart
    """
    from vsteer.report.page import write_report

    click.echo(f"report     {write_report(runs, out)}")
