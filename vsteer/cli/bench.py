"""`vsteer bench X`: measurements, each a table of figures with their targets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import click

from vsteer.bench.figures import Figure, as_json, as_table

Part = Literal["decode", "sharing"]
PARTS = get_args(Part)


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
@click.option("--part", type=click.Choice(PARTS), help="Only this part.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object instead of a table.")
def engine(model: str, quick: bool, part: Part | None, as_json_: bool) -> None:
    """What steering costs and what sharing prefixes gives, on MODEL.

    Decode: steered over stock vLLM, ablation in the graph over none, 512 configurations in a batch over one.
    Sharing: 60 configurations a prompt with prefix sharing over without and over a Hugging Face loop. Medians
    of rounds taken in turn.

    \b
    Example:
      vsteer bench engine smollm2-135m-instruct --quick
    """
    from vsteer.bench.engine import bench_engine
    from vsteer.models import resolve

    figures = bench_engine(resolve(model).model, quick, _tell, part)
    _show(figures, as_json_)


@bench.command()
@click.argument("model", default="smollm2-135m-instruct")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Contrast pairs; by default the built-in refusal pairs."
)
@click.option("--pairs", type=int, help="Only so many of them.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object instead of a table.")
def extract(model: str, data: Path | None, pairs: int | None, as_json_: bool) -> None:
    """How fast MODEL's activations are read, all layers of every pair, over a Hugging Face loop.

    \b
    Example:
      vsteer bench extract smollm2-135m-instruct --pairs 80
    """
    from vsteer.bench.extract import bench_extract
    from vsteer.datasets.builtin import data_path
    from vsteer.models import resolve

    path = data or data_path("refusal", "pairs")
    _show(bench_extract(resolve(model).model, path, pairs, _tell), as_json_)


@bench.command()
@click.argument("model", default="smollm2-135m-instruct")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object instead of a table.")
def run(model: str, as_json_: bool) -> None:
    """What `vsteer run` costs over bare vLLM on MODEL, whether its memory is flat, and the store alone.

    \b
    Example:
      vsteer bench run smollm2-135m-instruct
    """
    from vsteer.bench.run import bench_run
    from vsteer.models import resolve

    resolve(model)
    _show(bench_run(model, _tell), as_json_)


@bench.command()
@click.option("--rows", default=10_000_000, show_default=True, help="How many rows to make up.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object instead of a table.")
def queries(rows: int, as_json_: bool) -> None:
    """How long every query takes on made-up rows, on two threads.

    \b
    Example:
      vsteer bench queries --rows 1000000
    """
    from vsteer.bench.queries import bench_queries

    _show(bench_queries(rows), as_json_)


@bench.command()
@click.option("--rows", default=100_000, show_default=True, help="How many texts to make up.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object instead of a table.")
def score(rows: int, as_json_: bool) -> None:
    """How long the plain scorers take on made-up texts, and whether their memory is flat.

    \b
    Example:
      vsteer bench score --rows 20000
    """
    from vsteer.bench.scoring import bench_scoring

    _show(bench_scoring(rows), as_json_)


@bench.command()
@click.option("--runs", default=1000, show_default=True, help="Simulated runs a setting of the intervals.")
@click.option("--null-runs", default=500, show_default=True, help="Simulated runs a setting of the rest.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object instead of a table.")
def statistics(runs: int, null_runs: int, as_json_: bool) -> None:
    """Whether intervals, bands and fits keep what they promise, on simulated runs whose truth is known.

    \b
    Example:
      vsteer bench statistics --runs 200 --null-runs 100
    """
    from vsteer.bench.coverage import bench_statistics

    _show(bench_statistics(runs, null_runs, _tell), as_json_)


def _tell(line: str) -> None:
    click.echo(f"... {line}", err=True)


def _show(figures: Sequence[Figure], as_json_: bool) -> None:
    click.echo(as_json(figures) if as_json_ else as_table(figures))
    if not all(figure.ok for figure in figures):
        raise click.exceptions.Exit(1)
