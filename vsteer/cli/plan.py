"""`vsteer plan`: what a grid comes to, before anything is run. `vsteer run --dry-run` calls `show` too."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vsteer.terminal import echo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vsteer.grid.spec import Grid
    from vsteer.plan.budget import BlockBudget, Budget
    from vsteer.plan.memory import Memory
    from vsteer.plan.times import TimePart

WIDTH = 80


@click.command()
@click.argument("grid", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def plan(grid: Path, as_json: bool) -> None:
    """Show what the file GRID comes to: configurations, rows, tokens, disk, and the first prompts in full.

    Nothing is run or fetched. Where the model isn't here, lengths are estimated, and the grid must say
    how many layers it has (`layers: N`).

    \b
    Example:
      vsteer plan runs/quickstart.yaml
    """
    show(grid, as_json)


def show(path: Path, as_json: bool) -> None:
    """Print the plan of a grid: with the rows that stand, and the time that is left where it was measured."""
    from vsteer.grid.spec import read_grid
    from vsteer.plan import budget
    from vsteer.plan.memory import memory_of
    from vsteer.plan.rates import known_rates
    from vsteer.plan.times import times, total
    from vsteer.run.folder import run_plans
    from vsteer.run.left import left_of

    grid = read_grid(path)
    plans = run_plans(grid)
    budgets = [budget.budget(one) for one in plans]
    memories = [memory_of(one) for one in plans]
    left = left_of(plans)
    parts = [
        times(one, size, known_rates(one), rest) for one, size, rest in zip(plans, budgets, left, strict=True)
    ]
    standing = [size.rows - sum(rest.rows) for size, rest in zip(budgets, left, strict=True)]
    if as_json:
        models = [
            budget.as_json(size)
            | {
                "standing": stands,
                "seconds": total(times),
                "time": [vars(part) for part in times],
                "memory": memory and vars(memory),
            }
            for size, stands, times, memory in zip(budgets, standing, parts, memories, strict=True)
        ]
        echo(json.dumps({"name": grid.name, "models": models, "total": budget.summed(budgets)}, indent=2))
        return
    echo("\n".join(_text(grid, budgets, standing, parts, memories)))


def _text(
    grid: Grid,
    budgets: list[Budget],
    standing: list[int],
    times: list[list[TimePart]],
    memories: list[Memory | None],
) -> list[str]:
    from vsteer.plan.budget import summed

    lines = [f"{grid.name}: {len(budgets)} model{'s' * (len(budgets) > 1)}"]
    for one, stands, parts, memory in zip(budgets, standing, times, memories, strict=True):
        lines += ["", *_model(one, stands, parts, memory)]
    if len(budgets) > 1:
        total = summed(budgets)
        lines += ["", f"all models: {total['rows']:,} rows, {total['requests']:,} requests,"]
        lines += [f"  {_size(total['disk_bytes'])} on disk (estimated)"]
    for block in _first_of_each(budgets[0]):
        lines += ["", _rule(f"the first prompt of {block.evaluation}"), block.first_prompt, "-" * WIDTH]
    return lines


def _model(one: Budget, standing: int, times: list[TimePart], memory: Memory | None) -> list[str]:
    from vsteer.plan.left_out import described

    about = "~" if one.pending else ""
    saved = 1 - one.computed_tokens / one.prompt_tokens
    facts = [
        (
            "configurations",
            f"{one.configurations:,} ({one.baselines:,} unsteered, {one.controls:,} controls)"
            + (f" of {one.product:,}" if one.left_out else ""),
        ),
        ("rows", f"{one.rows:,}" + (f", of which {standing:,} stand" if standing else "")),
        ("requests", f"{about}{one.requests:,}"),
        ("prompts", f"{one.prompts:,}"),
        ("prompt tokens", f"{about}{one.prompt_tokens:,}"),
        ("  to compute", f"{about}{one.computed_tokens:,} (shared prefixes save {about}{saved:.0%})"),
        ("output tokens", f"at most {one.output_tokens:,}"),
        ("steering table", f"{one.cells:,} cells, {one.vector_rows:,} directions of {one.vectors:,} vectors"),
        *([("doses", f"{one.doses:,} multipliers to find on neutral text")] if one.doses else ()),
        ("disk", f"{about}{_size(one.disk_bytes)} (estimated)"),
    ]
    if one.coherence_tokens:
        facts.append(("perplexities", f"at most {about}{one.coherence_tokens:,} tokens to compute"))
    facts += _times(times)
    if memory:
        facts.append(("weights", f"{_size(memory.weights_bytes)} on each device ({memory.device})"))
    if memory and memory.forks_bytes:
        facts.append(("forks", f"keep at most {_size(memory.forks_bytes)} of unsteered prompts at a time"))
    if memory and memory.kv_bytes is not None:
        facts.append(
            ("KV memory", f"{_size(max(0, memory.kv_bytes))}, {memory.kv_tokens:,} tokens (estimated)")
        )
    lines = [_rule(one.model)]
    if one.pending:
        lines += _wrapped("The model is not at hand: tokens are estimated, and ids are pending.", "")
    lines += [f"{name:<16}{value}".rstrip() for name, value in facts]
    for made in one.made:
        lines += _wrapped(made, "vector ")
    for condition in one.conditions:
        lines += _wrapped(condition, "when ")
    if one.conditions:
        alone = "Each prompt is read once. Where its condition doesn't hold, a row is the baseline's: the"
        lines += _wrapped(f"{alone} tokens and the time here are the most there may be.", "  ")
    lines += ["", f"{'evaluation':<40}{'configs':>10}{'prompts':>10}{'samples':>8}{'rows':>12}"]
    for block in one.blocks:
        name = block.evaluation + (f", system {block.system}" if block.system else "")
        short = textwrap.shorten(name, 39, placeholder="...") if " " in name else name[:39]
        counts = f"{block.configurations:>10,}{block.prompts:>10,}{block.samples:>8,}{block.rows:>12,}"
        lines.append(f"{short:<40}{counts}")
    evaluations: dict[str, dict[str, None]] = {}
    for block in one.blocks:
        evaluations.setdefault(block.computed_as, {})[block.evaluation] = None
    for computed_as, names in evaluations.items():
        lines += _wrapped(f"{', '.join(names)}: computed as {computed_as}", "  ")
    for line in described(one.left_out):
        lines += _wrapped(line, "  ")
    for note in one.notes:
        lines += _wrapped(note, "note: ")
    return lines


def _times(parts: list[TimePart]) -> Iterator[tuple[str, str]]:
    """The time that is left in all, and in its parts; what no run has measured is unknown."""
    from vsteer.plan.times import total

    if not parts:
        yield "time", "nothing is left to compute"
        return
    unknown = any(part.seconds is None for part in parts)
    seconds = total(parts)
    if seconds is None:
        yield "time", "unknown: no run of this model on this machine has measured it"
        return
    days = sorted({part.day for part in parts if part.seconds})
    yield "time", ("at least " if unknown else "") + _range(seconds)
    yield "  measured", f"here, on {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "")
    for part in parts:
        yield f"  {part.name}", _range(part.seconds) if part.seconds else "unknown: not measured here yet"


def _range(seconds: tuple[float, float]) -> str:
    least, most = map(_time, seconds)
    return least if least == most else f"{least} to {most}"


def _first_of_each(one: Budget) -> list[BlockBudget]:
    return list({block.evaluation: block for block in reversed(one.blocks)}.values())[::-1]


def _rule(title: str) -> str:
    return f"--- {title} ".ljust(WIDTH, "-")


def _wrapped(text: str, start: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
