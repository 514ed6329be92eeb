"""`vsteer mechanism project MODEL VECTOR`: what a vector says at every token of a text, as coloured text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vsteer.cli.options import DEVICE, DTYPE
from vsteer.cli.plain_table import number, plain_table
from vsteer.cli.progress_bar import counting
from vsteer.errors import UsageError, VectorError
from vsteer.terminal import echo, harmless, on_one_line

if TYPE_CHECKING:
    from vsteer.mechanism.projection import Projection, TokenText
    from vsteer.mechanism.shades import Scale


@click.command(short_help="Show the stream's component along a vector at every token.")
@click.argument("model")
@click.argument("vector", type=click.Path(path_type=Path))
@click.option(
    "--layer",
    "layers",
    type=click.IntRange(0, 9_999),
    multiple=True,
    required=True,
    help="Behind which block the stream is read. May be repeated.",
)
@click.option("--text", "plain", multiple=True, help="A text as it is. May be repeated.")
@click.option("--prompt", "prompts", multiple=True, help="A question, in the model's chat template.")
@click.option("--response", "responses", multiple=True, help="What stands behind each --prompt.")
@click.option("--system", help="System prompt in front of every --prompt.")
@click.option("--run", type=click.Path(path_type=Path), help="A run whose stored texts are taken.")
@click.option(
    "--where",
    default="control in ('', 'system')",
    show_default=True,
    help="Of a run: which texts, as SQL over its rows.",
)
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=8, show_default=True, help="Of a run: how many texts."
)
@click.option(
    "--random-seed",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    show_default=True,
    help="Draws the random vector beside it.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write every number as Parquet; with --run the run's own file by default.",
)
@click.option("--revision", help="Revision of a hub model.")
@DTYPE
@DEVICE
@click.option("--force", is_flag=True, help="Replace FILE.")
def project(
    model: str,
    vector: Path,
    layers: tuple[int, ...],
    plain: tuple[str, ...],
    prompts: tuple[str, ...],
    responses: tuple[str, ...],
    system: str | None,
    run: Path | None,
    where: str,
    limit: int,
    random_seed: int,
    out: Path | None,
    revision: str | None,
    dtype: str,
    device: str,
    force: bool,
) -> None:
    """Show the component of MODEL's stream along VECTOR at every token of a text, at chosen layers.

    The stream is the unsteered model's, whatever wrote the text. Colours show how far each token lies above
    or below the mean of all tokens; the same text stands below, coloured by a random vector on the same
    scale. What is piped is a table of numbers. With --run MODEL is the name of the run's model, and the
    report draws what was projected last.

    \b
    Example:
      vsteer mechanism project smollm2-135m-instruct sentiment.safetensors --layer 15 \\
        --prompt "How was the film?" --response "I loved it, but the ending was sad."
    """
    from vsteer.engine.proof.reference import ReferenceEngine
    from vsteer.files import new_file
    from vsteer.mechanism import projection
    from vsteer.models import resolve
    from vsteer.run.loading import fetched, same_model, stored_models
    from vsteer.store.files import write_parquet
    from vsteer.vectors.files import load
    from vsteer.vectors.vector import check_place

    if run is not None and (plain or prompts):
        raise UsageError("there are texts of a run and others", "give --run, or --text and --prompt")
    if run is None and not plain and not prompts:
        raise UsageError("there is no text", "give --text, --prompt, or --run for a run's stored texts")
    if len(responses) > len(prompts):
        raise UsageError("there are more responses than prompts", "give a --prompt for each --response")
    target = out or (run / projection.FILE if run else None)
    replaces = force or out is None
    if target and target.exists() and not replaces:
        raise UsageError(f"{target} exists", "give another --out, or --force to replace it")
    steering_vector = load(vector)
    # what is measured is the stream behind the layers
    check_place(steering_vector.name, steering_vector.origin.where, "add")
    if run is not None:
        known = {facts.name: facts for facts, _ in stored_models(run)}
        if model not in known:
            raise UsageError(f"the run has no model {model[:100]!r}", f"it has {', '.join(known)[:200]}")
        texts = projection.texts_of_run(run, model, where, limit)
        folder = same_model(known[model])
    else:
        resolve(model, revision)
        folder = fetched(model, revision)
    engine = ReferenceEngine(str(folder), dtype=dtype, device=device)
    if run is None:
        texts = _texts(engine.tokenizer, plain, prompts, responses, system)
    layers = tuple(dict.fromkeys(layers))
    found = []
    with counting("projecting", len(texts) * len(layers)) as step:
        for one in projection.project(engine, texts, steering_vector, layers, random_seed):
            found.append(one)
            step()
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_file(target, VectorError, overwrite=replaces) as temporary:
            write_parquet(temporary, projection.as_table(found, model, steering_vector, random_seed))
    for layer in layers:
        _show([one for one in found if one.layer == layer], steering_vector.name, random_seed)
    if target:
        echo(f"{target}")


def _texts(
    tokenizer: Any,
    plain: Sequence[str],
    prompts: Sequence[str],
    responses: Sequence[str],
    system: str | None,
) -> list[TokenText]:
    from vsteer.mechanism.projection import TokenText
    from vsteer.prompts.template import render_question, with_gap

    texts = []
    for text in plain:
        ids = tuple(tokenizer(text)["input_ids"])
        texts.append(TokenText(ids, len(ids)))
    for n, prompt in enumerate(prompts):
        answer = with_gap(tokenizer, prompt, responses[n], system) if n < len(responses) else ""
        rendered = render_question(tokenizer, prompt, system, answer)
        texts.append(TokenText(rendered.token_ids, rendered.template_length))
    return texts


def _show(found: Sequence[Projection], name: str, seed: int) -> None:
    from vsteer.mechanism.projection import scale_of

    scale = scale_of(found)
    echo(
        f"layer {found[0].layer}, along {name}: mean {number(scale.mean)}, standard deviation over tokens "
        f"{number(scale.spread)}; along random {seed}: {number(scale.random_mean)}, "
        f"{number(scale.random_spread)}"
    )
    if not sys.stdout.isatty():
        rows = [
            [
                str(n),
                str(place),
                on_one_line(token),
                number(float(one.vector[place])),
                number(float(one.random[place])),
            ]
            for n, one in enumerate(found)
            for place, token in enumerate(one.tokens)
        ]
        echo(plain_table(["TEXT", "POSITION", "TOKEN", name[:30].upper(), "RANDOM"], rows, keys=3))
        return
    echo(f"a colour is full {number(scale.full)} above or below the mean")
    for n, one in enumerate(found):
        about = f"text {n}" + (f", written {one.text.steering}" if one.text.steering else "")
        for random in (False, True):
            echo(f"\n{about}, {f'random {seed}' if random else name}")
            _coloured(one, scale, random)
    echo()


def _coloured(one: Projection, scale: Scale, random: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    from vsteer.mechanism.shades import style

    line = Text()
    for token, value in zip(one.tokens, one.random if random else one.vector, strict=True):
        # a line break stays one, and is seen where a token is nothing else
        line.append(harmless(token), style=style(scale.shade(float(value), random=random)))
    Console().print(line)
