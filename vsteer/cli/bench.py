"""`vsteer bench X`: measurements, each a table of figures with their targets."""

from collections.abc import Sequence
from typing import Literal, get_args

import click

from vsteer.bench.figures import Figure, as_json, as_table
from vsteer.terminal import echo

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
@click.option("--quick", is_flag=True, help="About a minute of measuring after the engines' start.")
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

    figures = bench_engine(resolve(model).model, quick, on_progress, part)
    show(figures, as_json_)


@bench.command()
@click.argument("model", default="smollm2-135m-instruct")
@click.option("--quick", is_flag=True, help="Fewer configurations: about a minute of measuring.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object instead of a table.")
def forks(model: str, quick: bool, as_json_: bool) -> None:
    """Questions with given answers as forks of one unsteered pass, over requests, on MODEL.

    One engine computes the same rows both ways, in turn: one steered token, those behind the prompt, every
    token. Beside them a Hugging Face loop, and the share of the machine's matrix products that forks reach.

    \b
    Example:
      vsteer bench forks smollm2-135m-instruct --quick
    """
    from vsteer.bench.forks import bench_forks
    from vsteer.models import resolve

    show(bench_forks(resolve(model).model, quick, on_progress), as_json_)


@bench.command()
@click.argument("model", default="smollm2-135m-instruct")
@click.option("--count", type=click.IntRange(min=2), default=2, show_default=True, help="How many engines.")
@click.option("--quick", is_flag=True, help="Less work and fewer rounds: about a minute of measuring.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object instead of a table.")
def replicas(model: str, count: int, quick: bool, as_json_: bool) -> None:
    """Several engines behind one driver over as many by hand, on MODEL and the cores of this machine.

    Both answer the same questions and write the same number of tokens, in turn. Medians of the rounds.

    \b
    Example:
      vsteer bench replicas smollm2-135m-instruct --quick
    """
    from vsteer.bench.replicas import bench_replicas
    from vsteer.models import resolve

    show(bench_replicas(resolve(model).model, count, quick, on_progress), as_json_)


@bench.command()
@click.argument("model", default="smollm2-135m-instruct")
@click.option("--data", default="refusal", show_default=True, help="A behaviour or a file of contrast pairs.")
@click.option("--quick", is_flag=True, help="Fewer pairs: about half a minute of measuring.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object instead of a table.")
def extract(model: str, data: str, quick: bool, as_json_: bool) -> None:
    """How fast MODEL's activations are read, all layers of every pair, over a Hugging Face loop.

    \b
    Example:
      vsteer bench extract smollm2-135m-instruct --quick
    """
    from vsteer.bench.extract import bench_extract
    from vsteer.models import resolve

    show(bench_extract(resolve(model).model, data, quick, on_progress), as_json_)


@bench.command()
@click.argument("model", default="smollm2-135m-instruct")
@click.option("--quick", is_flag=True, help="Half the questions: about half a minute of measuring.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object instead of a table.")
def run(model: str, quick: bool, as_json_: bool) -> None:
    """What `vsteer run` costs over bare vLLM on MODEL: the same prompts through both, in turn.

    \b
    Example:
      vsteer bench run smollm2-135m-instruct --quick
    """
    from vsteer.bench.run import bench_run
    from vsteer.models import resolve

    resolve(model)
    show(bench_run(model, quick, on_progress), as_json_)


@bench.command()
@click.argument("model", default="smollm2-135m-instruct")
@click.option("--layer", type=click.IntRange(min=0), help="The injected one; by default the middle one.")
@click.option("--quick", is_flag=True, help="Shorter texts: some seconds.")
@click.option("--json", "as_json_", is_flag=True, help="Print one JSON object instead of a table.")
def mechanism(model: str, layer: int | None, quick: bool, as_json_: bool) -> None:
    """What a text of `vsteer mechanism` costs on MODEL, in memory and operations, part by part.

    With it a larger model is planned on paper. It is measured in float32 on processors.

    \b
    Example:
      vsteer bench mechanism smollm2-135m-instruct --quick
    """
    from vsteer.bench.mechanism import bench_mechanism
    from vsteer.errors import UsageError
    from vsteer.mechanism.model import Model

    loaded = Model.load(model)
    layer = loaded.layers // 2 - 1 if layer is None else layer
    if layer >= loaded.layers - 1:
        raise UsageError(
            f"behind layer {layer} there is nothing to measure", f"take one from 0 to {loaded.layers - 2}"
        )
    show(bench_mechanism(loaded, layer, quick, on_progress), as_json_)


def on_progress(line: str) -> None:
    """Say on stderr what is being measured."""
    echo(f"... {line}", err=True)


def show(figures: Sequence[Figure], as_json_: bool) -> None:
    """Print the figures, and exit 1 when one falls short."""
    echo(as_json(figures) if as_json_ else as_table(figures))
    if not all(figure.ok for figure in figures):
        raise click.exceptions.Exit(1)
