"""`vsteer report RUN...`: what one run found, or several, as one HTML file."""

from pathlib import Path

import click

from vsteer.terminal import echo


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", metavar="FILE", type=click.Path(path_type=Path), help="File to write.")
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Draw the runs in the folders RUN as one HTML file, by default RUN/report.html of the first.

    It needs no network and no other file. It shows what `vsteer sql` answers: each figure has its SQL and its
    numbers as CSV behind a click. Several runs, such as models of several sizes, are shown together.

    \b
    Example:
      vsteer report runs/quickstart
    """
    from vsteer.report.page import write_report

    echo(f"report     {write_report(runs, out)}")
