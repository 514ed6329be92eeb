"""`vsteer report RUN...`: what one run found, or several, as one HTML file."""

from pathlib import Path

import click

from vsteer.terminal import echo


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", metavar="FILE", type=click.Path(path_type=Path), help="File to write.")
@click.option(
    "--figures",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write each figure as SVG, PDF and PNG into this folder.",
)
def report(runs: tuple[Path, ...], out: Path | None, figures: Path | None) -> None:
    """Draw the runs in the folders RUN as one HTML file, by default RUN/report.html of the first.

    It needs no network and no other file. It shows what `vsteer sql` answers: each figure has its SQL and its
    numbers as CSV behind a click. Several runs, such as models of several sizes, are shown together. With
    --figures, each figure is also a file as wide as a paper's column, which says in words what it shows.

    \b
    Example:
      vsteer report runs/quickstart
    """
    from vsteer.report.page import write_report

    echo(f"report     {write_report(runs, out, figures)}")
    if figures:
        echo(f"figures    {figures}")
