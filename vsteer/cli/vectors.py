"""`vsteer vectors`: what steering vectors are, how alike they are, and making others of them."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from vsteer.cli.extract import extract
from vsteer.cli.plain_table import number, plain_table
from vsteer.cli.responses import responses
from vsteer.cli.train import train
from vsteer.errors import UsageError, VectorError
from vsteer.terminal import echo
from vsteer.vectors import derive
from vsteer.vectors.checks import MAX_LAYER
from vsteer.vectors.diagnostics.describe import (
    Row,
    common_layers,
    comparison,
    join_diagnostics,
    layer_rows,
    mean_cosines,
)
from vsteer.vectors.diagnostics.tables import table_path
from vsteer.vectors.files import VectorWarning, file_format, file_sha256, load, save
from vsteer.vectors.files.one_direction import load_direction
from vsteer.vectors.norms import with_norm
from vsteer.vectors.vector import SteeringVector

_PATH = click.Path(path_type=Path)


_Command = Callable[..., None]


def _of_many(command: _Command) -> _Command:
    """The options that choose one direction of a file of many; they come as keywords, to `_load`."""
    for option in (
        click.option("--where", type=click.Choice(["layer", "attention"]), help="Behind which part of it."),
        click.option("--at-layer", type=click.IntRange(0, MAX_LAYER), help="The layer that it belongs to."),
        click.option("--axis", type=click.IntRange(0, 1), help="0 where index counts rows, 1 columns."),
        click.option("--index", type=click.IntRange(0), help="Which direction of the tensor, from 0."),
        click.option("--key", help="One direction of a decoder's file: its tensor's name, such as W_dec."),
    ):
        command = option(command)
    return command


def _load(file: Path, chosen: Mapping[str, Any]) -> SteeringVector:
    key, layer = chosen["key"], chosen["at_layer"]
    given = [name for name, value in chosen.items() if value is not None]
    if key is None and given:
        raise UsageError(
            f"--{given[0].replace('_', '-')} has no meaning without --key",
            "--key names the tensor of a file that holds many directions",
        )
    if key is None:
        return load(file)
    if layer is None:
        raise UsageError(
            "--key needs --at-layer",
            "a decoder's file doesn't say which layer's stream it was learned on: --at-layer 12",
        )
    where = chosen["where"] or "layer"
    return load_direction(file, key, layer, index=chosen["index"], axis=chosen["axis"], where=where)


@click.group()
def vectors() -> None:
    """Look at steering vectors, compare them, and derive others from them.

    A vector is a .safetensors file of vsteer, a .gguf control vector of llama.cpp or repeng, CAA's
    vec_layer_*.pt (a file, or the folder of a behaviour), or one tensor a layer in .safetensors, .pt or
    .npy. The content decides which it is. Layer L is the output of decoder block L, counted from 0.

    \b
    Example:
      vsteer vectors inspect sentiment.safetensors
    """


@vectors.command(short_help="Show where a vector comes from, and its size at each layer.")
@click.argument("file", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
@click.option("--plot", type=_PATH, metavar="PICTURE", help="Draw the norms by layer too: a .png or .svg.")
@_of_many
def inspect(file: Path, as_json: bool, plot: Path | None, **chosen: Any) -> None:
    """Show where the vector in FILE comes from, and its size at each layer.

    NORM/STREAM is the norm over the mean norm of the model's stream at that layer, where it was measured.
    LARGEST is the share of the squared norm that lies in the largest component. Where extraction left a table
    FILE's-stem.layers.parquet beside it, its columns are shown too.

    Of a file that holds many directions, such as a sparse autoencoder's decoder in .safetensors or .npz,
    --key, --index and --at-layer choose one.

    \b
    Example:
      vsteer vectors inspect sentiment.safetensors --plot sentiment.png
    """
    vector = _load(file, chosen)
    rows = layer_rows(vector)
    sha256 = vector.origin.data_sha256 if chosen["key"] else file_sha256(file)
    kind = "one direction" if chosen["key"] else file_format(file)
    beside = table_path(file, "layers")
    if beside.is_file():
        try:
            rows = join_diagnostics(rows, beside)
        except VectorError as error:
            # The vector itself is sound and can be shown.
            echo(f"warning: left out: {error.message}", err=True)
    if plot:
        from vsteer.vectors.diagnostics.picture import draw

        draw(vector, plot)
    if as_json:
        head = {"name": vector.name, "file": str(file), "format": kind, "sha256": sha256}
        size = {"hidden_size": vector.hidden_size, "origin": asdict(vector.origin), "layers": rows}
        echo(json.dumps(head | size, indent=2))
        return
    echo(f"{_summary(vector)}\n")
    about = {"file": f"{file} ({kind})", "sha256": sha256}
    for key, value in (about | _known(vector)).items():
        echo(f"  {key:<14}{value}")
    titles = {"norm_over_stream": "NORM/STREAM", "largest_component_share": "LARGEST"}
    header = [titles.get(name, name.upper()) for name in rows[0]]
    echo(f"\n{plain_table(header, [[number(value) for value in row.values()] for row in rows])}")
    if plot:
        echo(f"\ndrawn: {plot}")


@vectors.command(short_help="Show how alike vectors are, layer by layer.")
@click.argument("files", type=_PATH, nargs=-1, required=True, metavar="A B [C...]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a table.")
def compare(files: tuple[Path, ...], as_json: bool) -> None:
    """Show how alike vectors are: the cosine and the ratio of the norms at each layer.

    For more than two: the mean cosine of each pair over the layers that all have. A zero direction points
    nowhere and has no cosine: it is shown as - and left out of means.

    \b
    Example:
      vsteer vectors compare refusal.safetensors sentiment.safetensors
    """
    if len(files) < 2:
        raise UsageError("there is only one vector", "name two or more files to compare")
    loaded = [load(file) for file in files]
    layers = common_layers(loaded)
    left_out = sorted({layer for vector in loaded for layer in vector.layers} - set(layers))
    letters = [_letter(place) for place in range(len(loaded))]
    if as_json:
        echo(json.dumps(_comparison_json(files, loaded, layers, left_out), indent=2))
        return
    for letter, file, vector in zip(letters, files, loaded, strict=True):
        echo(f"{letter}  {file}: {_summary(vector)}")
    if left_out:
        echo(f"not in all of them, and left out: {_layers(left_out)}")
    echo()
    if len(loaded) == 2:
        rows = comparison(loaded[0], loaded[1], layers)
        header = ["LAYER", "COSINE", "NORM A", "NORM B", "B/A"]
        echo(plain_table(header, [[number(value) for value in row.values()] for row in rows]))
    means = mean_cosines(loaded, layers)
    if len(loaded) == 2:
        echo(f"\nmean cosine over {_layers(layers)}: {number(means[0, 1])}")
        return
    echo(f"mean cosine over {_layers(layers)}\n")
    matrix = [
        [letter, *(number(means[place, other]) for other in range(len(loaded)))]
        for place, letter in enumerate(letters)
    ]
    echo(plain_table(["", *letters], matrix))


@vectors.command(short_help="Write a vector in another format or norm, or another one.")
@click.argument("source", type=_PATH, metavar="IN")
@click.argument("target", type=_PATH, metavar="OUT")
@click.option("--layer", type=int, help="1. This layer's direction for every layer.")
@click.option("--plus", type=_PATH, multiple=True, help="2. Add this vector. May be repeated.")
@click.option("--orthogonal-to", type=_PATH, help="3. Only what is orthogonal to this vector, per layer.")
@click.option("--sparsify", type=float, metavar="FRACTION", help="4. Keep this share of the dimensions.")
@click.option("--norm", help="5. raw, unit, caa, deviation, or residual:F (F times the stream's mean norm).")
@click.option("--with", "others", type=_PATH, multiple=True, help="A further behaviour for --norm caa.")
@click.option("--random", "seed", type=int, metavar="SEED", help="6. A random vector of the same norms.")
@click.option("--name", help="The new vector's name.")
@click.option("--force", is_flag=True, help="Overwrite OUT.")
@_of_many
def convert(
    source: Path,
    target: Path,
    layer: int | None,
    plus: tuple[Path, ...],
    orthogonal_to: Path | None,
    sparsify: float | None,
    norm: str | None,
    others: tuple[Path, ...],
    seed: int | None,
    name: str | None,
    force: bool,
    **chosen: Any,
) -> None:
    """Write the vector in IN to OUT: in another format, with another norm, or another vector made of it.

    OUT ends in .safetensors, or in .gguf for llama.cpp, which has no layer 0. Whatever the order of the
    options, they act in the order of their numbers. Where a vector's file doesn't record its norm,
    --norm raw says that it is raw. --key, --index and --at-layer choose IN's direction where it holds many.

    \b
    Example:
      vsteer vectors convert refusal.safetensors refusal.gguf --norm unit
      vsteer vectors convert params.npz cats.safetensors --key W_dec --index 4213 --axis 0 --at-layer 12
    """
    if others and norm is None:
        raise UsageError("--with has no meaning without --norm caa", "add --norm caa, or leave --with out")
    vector = _load(source, chosen)
    if layer is not None:
        vector = derive.one_layer(vector, layer)
    if plus:
        vector = derive.sum_of([vector, *map(load, plus)])
    if orthogonal_to is not None:
        vector = derive.orthogonal_to(vector, load(orthogonal_to))
    if sparsify is not None:
        vector = derive.sparsified(vector, sparsify)
    if norm is not None:
        vector = with_norm(vector, norm, [load(other) for other in others])
    if seed is not None:
        vector = derive.random_like(vector, seed)
    if name is not None:
        vector = replace(vector, name=name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VectorWarning)
        save(vector, target, overwrite=force)
    for warning in caught:
        echo(f"warning: {warning.message}", err=True)
    echo(f"{target}: {_summary(load(target))}")


def _summary(vector: SteeringVector) -> str:
    norm = vector.origin.norm or "unknown"
    return f"{vector.name}, {_layers(vector.layers)}, {vector.hidden_size} wide, norm {norm}"


def _layers(layers: tuple[int, ...] | list[int]) -> str:
    """`layers 0 to 29`, or with its gaps: `layers 3, 10 to 12`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    words = ", ".join(f"{a} to {b}" if b > a else f"{a}" for a, b in runs)
    return f"layer{'s' if len(layers) > 1 else ''} {words}"


def _known(vector: SteeringVector) -> dict[str, object]:
    """The origin's fields that are known."""
    known = {key: value for key, value in asdict(vector.origin).items() if value}
    steps = known.pop("derived", ())
    return known | {f"derived {place}": step for place, step in enumerate(steps, 1)}


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"#{place + 1}"


def _comparison_json(
    files: tuple[Path, ...], loaded: list[SteeringVector], layers: list[int], left_out: list[int]
) -> dict[str, object]:
    means = mean_cosines(loaded, layers)
    places = range(len(loaded))
    pairs: list[dict[str, str | list[Row]]] = [
        {"a": str(files[i]), "b": str(files[j]), "layers": comparison(loaded[i], loaded[j], layers)}
        for i in places
        for j in places
        if i < j
    ]
    return {
        "files": [str(file) for file in files],
        "names": [vector.name for vector in loaded],
        "layers": layers,
        "left_out_layers": left_out,
        "mean_cosine": [[means[i, j] for j in places] for i in places],
        "pairs": pairs,
    }


vectors.add_command(extract)
vectors.add_command(train)
vectors.add_command(responses)
