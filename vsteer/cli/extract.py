"""`vsteer vectors extract MODEL DATA`: contrast data through the engine, into a vector and tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vsteer.errors import UsageError

if TYPE_CHECKING:
    from vsteer.datasets.items import ItemSet, UnpairedSets

CAPTURES = 64


@click.command()
@click.argument("model")
@click.argument("data")
@click.option(
    "--negative", type=click.Path(path_type=Path), help="The negative set, where DATA is the positive one."
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="File to write; by default NAME.safetensors."
)
@click.option("--name", help="The vector's name; by default the data's.")
@click.option("--method", help="mean_diff or pca for pairs (default mean_diff), dim for two unpaired sets.")
@click.option(
    "--norm", default="raw", show_default=True, help="raw, unit, or residual:F such as residual:0.1."
)
@click.option("--token", default=None, help="answer (default for letters), last, or an offset such as -2.")
@click.option("--system", help="System prompt in front of every text.")
@click.option("--revision", help="Revision of a hub model.")
@click.option("--dtype", default="auto", show_default=True)
@click.option("--tensor-parallel-size", "tensor_parallel_size", default=1, show_default=True)
@click.option("--max-model-len", "max_model_len", type=int)
@click.option("--eager", is_flag=True, help="Without compilation: a quicker start, better for small data.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def extract(
    model: str,
    data: str,
    negative: Path | None,
    out: Path | None,
    name: str | None,
    method: str | None,
    norm: str,
    token: str | None,
    system: str | None,
    revision: str | None,
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

    \b
    Example:
      vsteer vectors extract smollm2-135m-instruct sentiment -o sentiment.safetensors
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vsteer.datasets.items import ItemSet
    from vsteer.models import resolve
    from vsteer.prompts.template import load_tokenizer
    from vsteer.vectors.diagnostics import rounding
    from vsteer.vectors.diagnostics import tables as diagnose
    from vsteer.vectors.extract import check_method, member_count
    from vsteer.vectors.files import file_sha256, save
    from vsteer.vectors.members import members, parse_token
    from vsteer.vectors.norms import parse_norm, with_norm
    from vsteer.vectors.vector import Origin

    # everything that can be wrong is found before the model is loaded
    if parse_norm(norm)[0] == "caa":
        raise UsageError(
            "the norm caa needs the other behaviours' vectors",
            "extract them raw, then: vsteer vectors convert IN OUT --norm caa --with OTHER",
        )
    contrast, sources = _read(data, negative, method)
    paired = isinstance(contrast, ItemSet)
    method = method or ("mean_diff" if paired else "dim")
    check_method(method, paired)
    chosen = parse_token(token or _default_token(contrast))
    name = name or Path(data).stem
    out = out or Path(f"{name}.safetensors")
    tables = [diagnose.table_path(out, table) for table in diagnose.TABLES]
    _check_out(out, tables, force)
    source = resolve(model, revision)
    tokenizer = load_tokenizer(source.model, source.revision)
    for _ in members(tokenizer, contrast, chosen, system):
        pass

    from vsteer.engine.driver import VllmEngine
    from vsteer.engine.start import EngineOptions
    from vsteer.engine.support import has_gpu
    from vsteer.engine.table import Capacity
    from vsteer.models.identity import commit_of, sha256_of
    from vsteer.prompts.template import is_chat
    from vsteer.vectors.extract import extract as run_extract

    console = Console(stderr=True)
    if isinstance(contrast, ItemSet):
        console.print(f"... {contrast.describe()}", highlight=False)
    console.print("... starting vLLM and proving that it steers and captures", highlight=False)
    options = EngineOptions(
        dtype=dtype,
        max_model_len=max_model_len,
        tensor_parallel_size=tensor_parallel_size,
        enforce_eager=eager,
        kv_cache_gib=None if has_gpu() else 1,
    )
    engine = VllmEngine(
        source.model, revision=source.revision, options=options, capacity=Capacity(captures=CAPTURES)
    )
    try:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("extracting", total=member_count(contrast))
            extraction = run_extract(
                engine, tokenizer, contrast, chosen, system, progress=lambda: bar.advance(task)
            )
        made_in, template = engine.info.dtype, "chat" if is_chat(tokenizer) else "plain"
    finally:
        engine.close()
    with extraction:
        console.print("... statistics of every layer", highlight=False)
        origin = Origin(
            model=model,
            revision=commit_of(*source),
            model_sha256=sha256_of(*source),
            data=data if negative is None else f"{data} {negative}",
            data_sha256="+".join(sources),
            method=method,
            token=str(chosen),
            template=template,
            system=system or "",
            dtype=made_in,
            pairs=extraction.pairs,
            model_type=engine.info.model_type,
            model_layers=engine.info.layers,
        )
        vector = with_norm(extraction.vector(name, method, origin), norm)
        found = diagnose.tables(extraction, vector)
    # the tables first: a vector that is there has its diagnostics
    diagnose.write_tables(found, out, overwrite=force)
    save(vector, out, overwrite=force)
    click.echo(f"{out}  {file_sha256(out)[:12]}  {len(vector.layers)} layers, {vector.hidden_size} wide")
    for table in tables:
        click.echo(str(table))
    if warning := rounding.warning(name, found["layers"], made_in):
        click.echo(f"warning: {warning}; --dtype float32 avoids it", err=True)
    click.echo(f"next: vsteer vectors inspect {out}")


def _read(data: str, negative: Path | None, method: str | None) -> tuple[ItemSet | UnpairedSets, list[str]]:
    """The data and the hash of every file that it came from."""
    from vsteer.datasets.builtin import behaviours, data_path
    from vsteer.datasets.items import ItemSet
    from vsteer.datasets.readers import read_contrast

    path = Path(data)
    if data in behaviours():
        path = data_path(data, "instructions" if method == "dim" else "pairs")
    contrast = read_contrast(path, negative)
    if isinstance(contrast, ItemSet):
        return contrast, [contrast.source.sha256]
    return contrast, list(dict.fromkeys([contrast.positive.source.sha256, contrast.negative.source.sha256]))


def _default_token(contrast: ItemSet | UnpairedSets) -> str:
    """The answer's letter where there is one, else the text's last token."""
    from vsteer.datasets.items import ItemSet

    return "answer" if isinstance(contrast, ItemSet) and all(i.lettered for i in contrast.items) else "last"


def _check_out(out: Path, tables: list[Path], force: bool) -> None:
    if out.suffix != ".safetensors":
        raise UsageError(
            f"{out} does not end in .safetensors", "extract writes safetensors; `convert` makes GGUF of it"
        )
    there = [path for path in (out, *tables) if path.exists()]
    if there and not force:
        raise UsageError(f"{there[0]} exists", "give another --out, or --force to replace it")
