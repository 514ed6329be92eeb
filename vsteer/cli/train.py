"""`vsteer vectors train MODEL DATA`: a vector learned by gradients from pairs of responses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vsteer.cli.options import COUNT, DEVICE, DTYPE, POSITIONS
from vsteer.cli.plain_table import number, plain_table
from vsteer.cli.progress_bar import progress_bar
from vsteer.errors import UsageError
from vsteer.terminal import echo

if TYPE_CHECKING:
    from vsteer.vectors.training.learner import Row


@click.command()
@click.argument("model")
@click.argument("data")
@click.option(
    "--layer",
    "layers",
    type=click.IntRange(0, 9_999),
    multiple=True,
    required=True,
    help="The layer behind which the vector acts. May be repeated: each is learned on its own.",
)
@click.option(
    "--method",
    type=click.Choice(["reps", "ntp"]),
    default="reps",
    show_default=True,
    help="Prefer the wanted response to the other (RePS), or predict its tokens.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="File to write; by default NAME.safetensors."
)
@click.option("--name", help="The vector's name; by default the data's and the method's.")
@POSITIONS
@click.option("--tokens", type=COUNT, default=64, show_default=True, help="How many of a response count.")
@click.option("--epochs", type=click.IntRange(1, 10_000), default=10, show_default=True)
@click.option("--batch-size", type=COUNT, default=6, show_default=True, help="Responses wanted in a step.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, 100, min_open=True),
    default=0.01,
    show_default=True,
    help="At the first step; it falls to 0.",
)
@click.option(
    "--k",
    type=click.FloatRange(0, 1e6),
    default=0.02,
    show_default=True,
    help="reps: how much an unlikely response weighs.",
)
@click.option(
    "--held-out",
    type=click.FloatRange(0, 0.9),
    default=0.2,
    show_default=True,
    help="The share of the pairs that only choose the epoch.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option(
    "--shuffle-labels",
    type=click.IntRange(0, 2**31 - 1),
    metavar="SEED",
    help="A control: in half of the pairs the responses change places.",
)
@click.option(
    "--mean-difference",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The vector whose length is taken; by default the mean difference of DATA.",
)
@click.option("--system", help="System prompt in front of every text.")
@click.option("--revision", help="Revision of a hub model.")
@DTYPE
@DEVICE
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="PICTURE", help="Draw the losses: a .png or .svg."
)
@click.option("--force", is_flag=True, help="Replace files that exist, and begin anew.")
def train(
    model: str,
    data: str,
    layers: tuple[int, ...],
    out: Path | None,
    name: str | None,
    mean_difference: Path | None,
    system: str | None,
    revision: str | None,
    dtype: str,
    device: str,
    plot: Path | None,
    force: bool,
    shuffle_labels: int | None,
    **settings: Any,
) -> None:
    """Learn a vector for MODEL from DATA: lines of {prompt, positive, negative}, or a built-in behaviour.

    The model stays as it is, in Hugging Face. In each step the vector is added times a random factor from 2
    to 20, whose sign says which of the two responses is wanted. The vector gets the mean difference's length,
    and the epoch is the one with the least loss on held-out pairs at that length. Beside it a Parquet table
    (.training) holds the losses, with those of random vectors, of the mean difference, and of none. What was
    interrupted goes on with the same command.

    \b
    Example:
      vsteer vectors train smollm2-135m-instruct sentiment --layer 15 -o learned.safetensors
    """
    from vsteer.engine.proof.reference import ReferenceEngine
    from vsteer.models import resolve
    from vsteer.models.hugging_face import load_config, load_tokenizer
    from vsteer.run.loading import fetched
    from vsteer.vectors.diagnostics.picture import check_ending, draw_chart
    from vsteer.vectors.diagnostics.tables import table_path, write_tables
    from vsteer.vectors.files import file_sha256, load, save
    from vsteer.vectors.recipe import make_recipe, model_origin
    from vsteer.vectors.training import learn as learning
    from vsteer.vectors.training.picture import loss_chart
    from vsteer.vectors.training.settings import Settings
    from vsteer.vectors.training.texts import held_out

    wanted = Settings(shuffled=shuffle_labels, **settings)
    layers = tuple(dict.fromkeys(layers))
    recipe = make_recipe(data, system=system, name=name)
    pairs = learning.responses_of(recipe)
    if name is None:
        recipe = make_recipe(data, system=system, name=f"{recipe.name}-{wanted.method}")
    out = out or Path(f"{recipe.name}.safetensors")
    _check_out(out, table_path(out, "training"), force)
    if plot:
        check_ending(plot)
    source = resolve(model, revision)
    tokenizer, config = (of(source.model, source.revision) for of in (load_tokenizer, load_config))
    recipe.check(tokenizer)
    standard_file = load(mean_difference) if mean_difference else None
    learning.check_layers(layers, config, standard_file)
    texts = learning.pairs_of(recipe, tokenizer, config, wanted)
    steps = learning.steps(len(texts), wanted)
    if force:
        learning.checkpoint_path(out).unlink(missing_ok=True)

    engine = ReferenceEngine(str(fetched(model, revision)), dtype=dtype, device=device)
    echo(f"... {pairs.describe()}", err=True)
    with progress_bar() as bar:
        if standard_file is None:
            task = bar.add_task("mean difference", total=recipe.members)
            with recipe.read(
                engine, tokenizer, model_origin(model, source), lambda: bar.advance(task)
            ) as reading:
                learned, _ = held_out(len(texts), wanted.held_out, wanted.seed)
                standard = learning.standard_of(reading, learned)
        else:
            standard = learning.standard_in(standard_file, engine, model_origin(model, source))
        tasks = {layer: bar.add_task(f"layer {layer}", total=steps) for layer in layers}

        def on_step(layer: int, step: int, loss: float) -> None:
            what = f"layer {layer}" if math.isnan(loss) else f"layer {layer}, loss {loss:.4f}"
            bar.update(tasks[layer], completed=step, description=what)

        vector, rows = learning.learn(engine, recipe, texts, standard, layers, wanted, out, on_step)
    write_tables({"training": rows}, out, overwrite=force)
    save(vector, out, overwrite=force)
    learning.checkpoint_path(out).unlink(missing_ok=True)
    echo(_table(rows))
    if plot:
        draw_chart(lambda altair: loss_chart(altair, rows, vector.name), plot)
        echo(f"drawn: {plot}")
    echo(f"{out}  {file_sha256(out)[:12]}  {len(vector.layers)} layers, {vector.hidden_size} wide")
    echo(str(table_path(out, "training")))
    echo(f"next: vsteer vectors inspect {out}")


def _check_out(out: Path, table: Path, force: bool) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(f"{out} does not end in .safetensors", "`convert` makes GGUF of it")
    there = [path for path in (out, table) if path.exists()]
    if there and not force:
        raise UsageError(f"{there[0]} exists", "give another --out, or --force to replace it")


def _table(rows: Sequence[Row]) -> str:
    """The chosen epoch of each layer beside its controls; of the random vectors the mean and the best."""
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        of = [row for row in rows if row["layer"] == layer]
        randoms = [row for row in of if row["vector"].startswith("random")]
        mean = {name: sum(row[name] for row in randoms) / len(randoms) for name in ("loss", "match")}
        shown = [
            *((f"learned, epoch {row['epoch']}", row) for row in of if row["chosen"]),
            *((row["vector"], row) for row in of if row["vector"] in ("mean difference", "unsteered")),
            (f"{len(randoms)} random, mean", mean),
            ("random, best", min(randoms, key=lambda row: row["loss"])),
        ]
        lines += [[str(layer), what, number(row["loss"]), number(row["match"])] for what, row in shown]
    return plain_table(["LAYER", "VECTOR", "HELD-OUT LOSS", "MATCH"], lines, keys=2)
