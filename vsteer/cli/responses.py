"""`vsteer vectors responses MODEL PROMPTS`: two responses to each prompt, from which a vector is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vsteer.cli.options import COUNT, POSITIONS
from vsteer.cli.progress_bar import progress_bar
from vsteer.errors import UsageError
from vsteer.terminal import echo


@click.command(short_help="Make prompts with two responses each, to learn a vector from.")
@click.argument("model")
@click.argument("prompts")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The .jsonl to write.")
@click.option("--positive-system", help="System prompt under which the positive responses are written.")
@click.option("--negative-system", help="System prompt under which the negative responses are written.")
@click.option("--vector", type=click.Path(path_type=Path), help="A vector to steer with.")
@click.option("--layer", type=click.IntRange(0, 9_999), help="The layer behind which it acts.")
@click.option("--positive-multiplier", type=float, default=0.0, show_default=True)
@click.option("--negative-multiplier", type=float, default=0.0, show_default=True)
@POSITIONS
@click.option(
    "--keep",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Keep a pair only where this holds, such as 'positive.refusal >= 1'. May be repeated.",
)
@click.option("--max-tokens", type=COUNT, default=512, show_default=True, help="Of each response.")
@click.option("--limit", type=COUNT, help="How many prompts, from the first.")
@click.option("--revision", help="Revision of a hub model.")
@click.option("--dtype", default="auto", show_default=True)
@click.option("--max-model-len", type=COUNT)
@click.option("--eager", is_flag=True, help="Start sooner, without compilation.")
@click.option("--force", is_flag=True, help="Replace files that exist, and begin anew.")
def responses(
    model: str,
    prompts: str,
    out: Path,
    positive_system: str | None,
    negative_system: str | None,
    vector: Path | None,
    layer: int | None,
    positive_multiplier: float,
    negative_multiplier: float,
    positions: str,
    conditions: tuple[str, ...],
    max_tokens: int,
    limit: int | None,
    revision: str | None,
    dtype: str,
    max_model_len: int | None,
    eager: bool,
    force: bool,
) -> None:
    """Let MODEL write two greedy responses to each of PROMPTS, a built-in behaviour or a file of questions.

    The positive ones show the behaviour and the negative ones don't: by a system prompt, by steering, or as
    the model is. A pair is kept where both say something, they differ, and every --keep holds of the plain
    scorers' numbers (refusal, distinct_1, repetition, words, non_language, ...). Beside OUT a file .made.json
    says how it was made. What was interrupted goes on with the same command.

    \b
    Example:
      vsteer vectors responses smollm2-135m-instruct sentiment -o glad.jsonl \\
        --positive-system "You love everything." --negative-system "You hate everything."
    """
    from dataclasses import replace

    from vsteer.api import responses as making
    from vsteer.api.engine import Engine
    from vsteer.datasets.builtin import find_data
    from vsteer.datasets.readers import read_prompts
    from vsteer.vectors.files import load

    keep = [making.parse_condition(text) for text in conditions]
    if vector is not None and layer is None:
        raise UsageError("--vector has no layer at which it acts", "give --layer")
    if vector is None and (layer is not None or positive_multiplier or negative_multiplier):
        raise UsageError("there is a layer or a multiplier, and no vector", "give --vector")
    loaded = load(vector) if vector else None

    def side(system: str | None, multiplier: float) -> making.Side:
        steered = loaded is not None and multiplier != 0
        return making.Side(system, loaded.at(layer or 0, multiplier) if loaded and steered else None)

    sides = {
        "positive": side(positive_system, positive_multiplier),
        "negative": side(negative_system, negative_multiplier),
    }
    making.check_sides(sides["positive"], sides["negative"])
    asked = read_prompts(find_data(prompts, "open", Path()))
    if limit is not None:
        asked = replace(asked, prompts=asked.prompts[:limit])
    for path in (out, making.how_path(out)):
        if path.exists() and not force:
            raise UsageError(f"{path} exists", "give another --out, or --force to replace it")
    if out.suffix != ".jsonl":
        raise UsageError(f"{out} does not end in .jsonl", "what is written is JSON Lines")
    if force:
        making.part_path(out).unlink(missing_ok=True)

    echo(f"... {model}: loading it into vLLM", err=True)
    options: dict[str, Any] = {"max_model_len": max_model_len} if max_model_len else {}
    with (
        Engine(model, revision=revision, dtype=dtype, enforce_eager=eager, **options) as engine,
        progress_bar() as bar,
    ):
        task = bar.add_task("responses", total=2 * len(asked.prompts))
        made = making.make_responses(
            engine, asked, sides, keep, out, positions=positions, max_tokens=max_tokens, overwrite=force,
            on_progress=lambda count: bar.advance(task, count),
        )  # fmt: skip
    echo(f"{made.kept:,} of {made.prompts:,} pairs kept: {out}")
    for reason, count in made.dropped.items():
        echo(f"  {count:,} dropped: {reason}" + ("" if reason[:2] in ("an", "eq") else " does not hold"))
    for name, by_side in made.means.items():
        found = ", ".join(f"{value:.3f} in {side} responses" for side, value in by_side.items())
        echo(f"  mean {name} over all prompts: {found}")
    if made.kept:
        echo(f"next: vsteer vectors train {model} {out} --layer L")
