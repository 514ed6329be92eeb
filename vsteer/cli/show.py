"""`vsteer show RUN`: a model's answers to one prompt over the multipliers, side by side."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vsteer.cli.plain_table import number, plain_table
from vsteer.errors import UsageError
from vsteer.operations import OPERATIONS
from vsteer.store.database import records
from vsteer.terminal import echo, harmless, on_one_line
from vsteer.validation import did_you_mean, shortened, shown

if TYPE_CHECKING:
    import duckdb

# A column of fewer characters can't be read.
NARROWEST = 26
MOST_CANDIDATES = 5
# The rows of one table agree in these; they differ in the multiplier.
BLOCK = ("model", "evaluation", "kind", "system", "letter_order", "vector", "norm", "positions", "operation")

# One row for each item, whose prompts may stand in several evaluations, each with a question of its own.
FOUND = """
select coalesce(nullif(swapped_from, ''), item_id) as item,
       list(distinct question order by question) as questions,
       bool_or($prompt in (prompt_id, item_id, swapped_from, question)) as is_it
from prompts
where $evaluation in ('', evaluation)
group by item
having is_it or bool_or(contains(lower(question), lower($prompt)) or starts_with(prompt_id, $prompt)
                        or starts_with(item_id, $prompt) or starts_with(swapped_from, $prompt))
order by questions, item
"""
EVALUATIONS = "select distinct evaluation from prompts order by evaluation"
LAYERS = """
select distinct array_to_string(layers, '+') as layer, layers from configs
where vector <> '' and control in ('', 'system') order by layers
"""
ROWS = """
with asked as (
    select prompt_id from prompts
    where coalesce(nullif(swapped_from, ''), item_id) = $item and $evaluation in ('', evaluation)
),
steered as (
    select r.* from rows r
    where r.prompt_id in (select prompt_id from asked) and r.vector <> '' and r.control in ('', 'system')
      and array_to_string(r.layers, '+') = $layer and ($vector = '' or r.vector = $vector)
)
select model, evaluation, kind, system, letter_order, vector, norm, positions, operation, multiplier, sample,
       status, error, text, finish_reason, choices, choice_logprobs, matching, p_match, logit_diff, total_mass
from (
    from steered
    union all by name
    -- the unsteered row of each block, which differs in nothing but the steering
    select r.* replace (s.vector as vector, s.norm as norm, s.positions as positions,
                        s.operation as operation)
    from rows r
    join (select distinct model, evaluation, system, prompt_id, vector, norm, positions, operation
          from steered) s using (model, evaluation, system, prompt_id)
    where r.vector = ''
)
where sample = $sample
order by model, evaluation, kind, system, letter_order, vector, norm, positions, operation, multiplier
"""
Row = Mapping[str, Any]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--prompt",
    required=True,
    metavar="P",
    help="A part of the question, or the beginning of an item's or a prompt's id.",
)
@click.option("--evaluation", default="", help="One evaluation only.")
@click.option("--layer", metavar="L", help="The layer, or layers steered at once such as 10+14.")
@click.option("--vector", default="", help="One vector only.")
@click.option("--sample", default=0, show_default=True, type=click.IntRange(min=0), help="Which sample.")
def show(run: Path, prompt: str, evaluation: str, layer: str | None, vector: str, sample: int) -> None:
    """Show the answers to the prompt P in the run RUN, steered at layer L, over the multipliers.

    Texts are side by side in a terminal, and one after the other when piped; choices are shown as
    probabilities. The unsteered model is multiplier 0. Control vectors are left out.

    \b
    Example:
      vsteer show runs/quickstart --prompt "a restaurant" --layer 20
    """
    from vsteer.results.views import connect_runs, readable

    with connect_runs([run]) as database, readable(run):
        questions, item = the_prompt(database, prompt, evaluation)
        steered = the_layer(database, layer)
        found = records(
            database, ROWS, item=item, evaluation=evaluation, layer=steered, vector=vector, sample=sample
        )
    if not found:
        of = f" by the vector {shortened(vector)}" if vector else ""
        raise UsageError(
            f"no row of that prompt is steered at layer {steered}{of}, sample {sample}",
            "it may not have been run yet: vsteer status RUN",
        )
    for question in questions:
        echo(f"prompt  {question}")
    width = terminal_width()
    for block, rows in blocks(found):
        echo(f"\n{title(block, steered)}")
        echo(choices(rows) if block["kind"] == "choice" else texts(rows, width))


def the_prompt(database: duckdb.DuckDBPyConnection, prompt: str, evaluation: str) -> tuple[list[str], str]:
    """The questions of the one item that is meant, which is the same in all evaluations and letter orders."""
    found = records(database, FOUND, prompt=prompt, evaluation=evaluation)
    exact = [one for one in found if one["is_it"]] or found
    if not exact:
        names = [one["evaluation"] for one in records(database, EVALUATIONS)]
        if evaluation and evaluation not in names:
            raise UsageError(
                f"no evaluation is called {shown(evaluation)}",
                did_you_mean(evaluation, names, f"there are {shortened(', '.join(names))}"),
            )
        raise UsageError(
            f"no prompt has {shown(prompt)} in its question, or as the beginning of its id",
            "give a shorter part of it",
        )
    if len(exact) > 1:
        each = [
            f"  {one['item']}  {shortened(on_one_line(one['questions'][0]), 50)}"
            for one in exact[:MOST_CANDIDATES]
        ]
        more = [f"  and {len(exact) - MOST_CANDIDATES:,} more"] if len(exact) > MOST_CANDIDATES else []
        raise UsageError(
            "\n".join([f"{len(exact):,} prompts have {shown(prompt)} in their question:", *each, *more]),
            "give more of the question, or the id in front of it",
        )
    return exact[0]["questions"], exact[0]["item"]


def the_layer(database: duckdb.DuckDBPyConnection, layer: str | None) -> str:
    layers: list[str] = [one["layer"] for one in records(database, LAYERS)]
    if layer is not None and layer in layers:
        return layer
    if layer is None and len(layers) == 1:
        return layers[0]
    fault = "no layer is given" if layer is None else f"layer {shortened(layer)} is not steered in this run"
    known = shortened(", ".join(layers), 200)
    raise UsageError(fault, f"give --layer, one of {known}" if layers else "nothing is steered in it")


def blocks(found: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
    parts: dict[tuple[Any, ...], list[Row]] = {}
    for row in found:
        parts.setdefault(tuple(row[name] for name in BLOCK), []).append(row)
    return [(dict(zip(BLOCK, key, strict=True)), rows) for key, rows in parts.items()]


def title(block: Row, layer: str) -> str:
    more = [f"system prompt {block['system']!r}"] if block["system"] else []
    more += ["letters swapped"] if block["letter_order"] == "swapped" else []
    asked = f"{block['evaluation']} in {block['model']}{''.join(f', {one}' for one in more)}"
    steering = f"{block['vector']} (norm {block['norm']}), {block['operation']} at {block['positions']}"
    return f"{asked}: {steering}, layer {layer}"


def choices(rows: Sequence[Row]) -> str:
    """The probability of each answer; a star marks the one that matches the behaviour."""
    answered = [row for row in rows if row["status"] == "ok"]
    first = answered[0] if answered else None
    if first is None:
        return "\n".join(f"{label(row)}: failed: {row['error']}" for row in rows)
    names = [
        f"p({choice})" + ("*" if place == first["matching"] else "")
        for place, choice in enumerate(first["choices"])
    ]
    header = ["MULTIPLIER", *names, "P(MATCHING)", "LOGIT DIFF", "MASS"]
    body = [
        [
            label(row),
            *(number(math.exp(logprob), 3) for logprob in row["choice_logprobs"]),
            number(row["p_match"], 3),
            number(row["logit_diff"], 2),
            number(row["total_mass"], 3),
        ]
        for row in answered
    ]
    failed = [f"{label(row)}: failed: {row['error']}" for row in rows if row["status"] != "ok"]
    return "\n".join([plain_table(header, body), *failed])


def texts(rows: Sequence[Row], width: int | None) -> str:
    """Columns in a terminal of that width, as many side by side as can be read; else one after the other."""
    if width is None:
        return "\n".join(f"--- {label(row)}\n{answer(row)}" for row in rows)
    columns = max(1, (width + 2) // (NARROWEST + 2))
    return "\n".join(side_by_side(rows[n : n + columns], width) for n in range(0, len(rows), columns))


def side_by_side(rows: Sequence[Row], width: int) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
    for row in rows:
        table.add_column(Text(label(row)), ratio=1, overflow="fold")
    table.add_row(*(Text(harmless(answer(row))) for row in rows))
    # without styles, which are a terminal's commands too
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def label(row: Row) -> str:
    multiplier = row["multiplier"]
    if multiplier is None:
        return OPERATIONS[row["operation"]].done
    return f"{multiplier:+g}" if multiplier else "unsteered"


def answer(row: Row) -> str:
    if row["status"] != "ok":
        return f"failed: {row['error']}"
    return str(row["text"]) + (" …" if row["finish_reason"] == "length" else "")


def terminal_width() -> int | None:
    if not sys.stdout.isatty():
        return None
    from shutil import get_terminal_size

    return get_terminal_size().columns
