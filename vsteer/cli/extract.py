"""`vsteer vectors extract MODEL DATA`: contrast data through the engine, into a vector and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vsteer.cli.options import COUNT
from vsteer.cli.progress_bar import counting
from vsteer.errors import UsageError
from vsteer.terminal import echo

if TYPE_CHECKING:
    from vsteer.vectors.vector import SteeringVector

Rows = list[dict[str, Any]]


@click.command()
@click.argument("model")
@click.argument("data")
@click.option("--negative", help="The negative set, where DATA is the positive one.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="File to write; by default NAME.safetensors."
)
@click.option("--name", help="The vector's name; by default the data's.")
@click.option(
    "--method", help="mean_diff, pca or iti for pairs (default mean_diff), dim for two unpaired sets."
)
@click.option("--heads", type=COUNT, help="How many attention heads iti chooses; by default 48.")
@click.option(
    "--norm",
    default="raw",
    show_default=True,
    help="raw, unit, deviation, or residual:F as in residual:0.1.",
)
@click.option("--token", default=None, help="answer (default for letters), last, or an offset such as -2.")
@click.option("--system", help="System prompt in front of every text.")
@click.option("--revision", help="Revision of a hub model.")
@click.option("--adapter", type=click.Path(path_type=Path), help="A LoRA's folder, merged into MODEL.")
@click.option("--dtype", default="auto", show_default=True)
@click.option("--tensor-parallel-size", "tensor_parallel_size", type=COUNT, default=1, show_default=True)
@click.option("--max-model-len", "max_model_len", type=COUNT)
@click.option("--eager", is_flag=True, help="Without compilation: a quicker start, better for small data.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def extract(
    model: str,
    data: str,
    negative: str | None,
    out: Path | None,
    name: str | None,
    method: str | None,
    heads: int | None,
    norm: str,
    token: str | None,
    system: str | None,
    revision: str | None,
    adapter: Path | None,
    dtype: str,
    tensor_parallel_size: int,
    max_model_len: int | None,
    eager: bool,
    force: bool,
) -> None:
    """Make a vector for every layer of MODEL from DATA, a built-in behaviour or a file of contrast data.

    All layers in one pass through vLLM; the members of a pair share their prefix. Beside the vector come
    three Parquet tables: what each layer's direction is worth (.layers), the members on their first two
    components (.pca), and layer by layer cosines (.cosine).

    The method iti reads attention heads, in Hugging Face: its vector is added behind the attention, at all of
    its layers together, and beside it a table (.heads) says how well each head tells held-out pairs apart.

    \b
    Example:
      vsteer vectors extract smollm2-135m-instruct sentiment -o sentiment.safetensors
    """
    from vsteer.datasets.items import ItemSet
    from vsteer.engine.options import EngineOptions
    from vsteer.engine.table import Capacity
    from vsteer.models import Source, resolve
    from vsteer.models.adapters import adapted_name
    from vsteer.models.hugging_face import load_tokenizer
    from vsteer.run.loading import fetched, load_named
    from vsteer.vectors.diagnostics import rounding
    from vsteer.vectors.diagnostics import tables as diagnose
    from vsteer.vectors.heads import TABLE, check_heads, read_heads
    from vsteer.vectors.recipe import CAPTURES, make_recipe, model_origin

    # everything that can be wrong is found before the model is loaded
    recipe = make_recipe(
        data, negative=negative, method=method, token=token, system=system, heads=heads, name=name
    )
    out = out or Path(f"{recipe.name}.safetensors")
    names = diagnose.TABLES if recipe.heads is None else (TABLE,)
    tables = [diagnose.table_path(out, table) for table in names]
    _check_out(out, tables, force)
    source = Source(str(fetched(model, revision, adapter)), None) if adapter else resolve(model, revision)
    tokenizer = load_tokenizer(source.model, source.revision)
    recipe.check(tokenizer, norm)

    folder = Path(source.model) if adapter else fetched(model, revision)
    origin = model_origin(adapted_name(model, adapter), source)
    if recipe.heads is not None:
        check_heads(recipe, folder)

    if isinstance(recipe.data, ItemSet):
        echo(f"... {recipe.data.describe()}", err=True)
    if recipe.heads is not None:
        with counting("reading heads", recipe.members) as step:
            vector, rows = read_heads(recipe, folder, dtype, tokenizer, origin, step)
        _write(out, vector, {TABLE: rows}, force)
        return
    echo("... starting vLLM and proving that it steers and captures", err=True)
    options = EngineOptions(
        tensor_parallel_size=tensor_parallel_size, max_model_len=max_model_len, enforce_eager=eager
    )
    engine = load_named(folder, dtype, options, Capacity(captures=CAPTURES))
    try:
        with counting("extracting", recipe.members) as step:
            reading = recipe.read(engine, tokenizer, origin, on_progress=step)
    finally:
        engine.close()
    with reading:
        echo("... statistics of every layer", err=True)
        vector = reading.vector(norm)
        found = diagnose.tables(reading.extraction, vector)
    _write(out, vector, found, force)
    if warning := rounding.warning(recipe.name, found["layers"], vector.origin.dtype):
        echo(f"warning: {warning}; --dtype float32 avoids it", err=True)


def _write(out: Path, vector: SteeringVector, tables: Mapping[str, Rows], force: bool) -> None:
    from vsteer.vectors.diagnostics.tables import table_path, write_tables
    from vsteer.vectors.files import file_sha256, save

    # the tables first: a vector that is there has its diagnostics
    write_tables(tables, out, overwrite=force)
    save(vector, out, overwrite=force)
    echo(f"{out}  {file_sha256(out)[:12]}  {len(vector.layers)} layers, {vector.hidden_size} wide")
    for table in tables:
        echo(str(table_path(out, table)))
    echo(f"next: vsteer vectors inspect {out}")


def _check_out(out: Path, tables: list[Path], force: bool) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(
            f"{out} does not end in .safetensors", "extract writes safetensors; `convert` makes GGUF of it"
        )
    there = [path for path in (out, *tables) if path.exists()]
    if there and not force:
        raise UsageError(f"{there[0]} exists", "give another --out, or --force to replace it")
