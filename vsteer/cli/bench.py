"""`vsteer bench X`: measurements, each a table of figures with their targets."""

import click

from vsteer.bench.figures import as_json, as_table


@click.group()
def bench() -> None:
    """Measure vsteer on this machine; exits 1 when a figure falls short.

    \b
    Example:
      vsteer bench engine --quick
    """


@bench.command()
@click.argument("model", default="smollm2-135m-instruct")
@click.option("--quick", is_flag=True, help="Two or three minutes of measuring after the engines' start.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object instead of a table.")
def engine(model: str, quick: bool, as_json_: bool) -> None:
    """What steering costs and what sharing prefixes gives, on MODEL.

    Steered over stock vLLM, 512 configurations in a batch over one, and 60 configurations a prompt with
    prefix sharing over without and over a Hugging Face loop. Medians of rounds taken in turn.

    \b
    Example:
      vsteer bench engine smollm2-135m-instruct --quick
    """
    from vsteer.bench.engine import bench_engine
    from vsteer.models import resolve

    figures = bench_engine(resolve(model).model, quick, lambda line: click.echo(f"... {line}", err=True))
    click.echo(as_json(figures) if as_json_ else as_table(figures))
    if not all(figure.ok for figure in figures):
        raise click.exceptions.Exit(1)
