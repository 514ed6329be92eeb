"""`vsteer score RUN --scorer NAME`: score the stored texts of a run, without generating anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vsteer.evals.judge import Judged

INCOMPLETE = 3


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--scorer",
    "names",
    multiple=True,
    metavar="NAME",
    help="refusal, repetition, length, characters, steerability or judge; may be repeated. By default the "
    "first four.",
)
@click.option("--rubric", help="judge: refusal, sentiment, language, or a text file.")
@click.option("--base-url", help="judge: an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1.")
@click.option("--judge-model", help="judge: the model's name there.")
@click.option(
    "--budget", type=click.IntRange(min=1), help="judge: spend no more tokens on this run than this."
)
@click.option(
    "--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="judge: asked at once."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=120.0,
    show_default=True,
    help="judge: seconds a try.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of text.")
def score(
    run: Path,
    names: tuple[str, ...],
    rubric: str | None,
    base_url: str | None,
    judge_model: str | None,
    budget: int | None,
    concurrency: int,
    timeout: float,
    as_json: bool,
) -> None:
    """Score what the run in the folder RUN wrote, into RUN/scores/. Nothing is generated.

    refusal, repetition, length and characters look at texts; steerability fits a line to each choice item
    over its multipliers; judge asks a model for a number from 0 to 10 by a rubric. The same command scores
    only what is new; an answer of a judge is never paid for twice. A judge's key is read from OPENAI_API_KEY
    in the environment. Exit codes: 0 complete, 3 a judge has texts left open.

    \b
    Example:
      vsteer score runs/quickstart --scorer refusal --scorer repetition
    """
    from vsteer.errors import UsageError
    from vsteer.evals.scorers import PLAIN
    from vsteer.store.scores import STEERABILITY

    chosen = list(dict.fromkeys(names or PLAIN))
    known = [*PLAIN, STEERABILITY, "judge"]
    if unknown := [name for name in chosen if name not in known]:
        raise UsageError(f"no scorer is called {unknown[0]!r}", f"there are {', '.join(known)}")
    if "judge" in chosen and not (rubric and base_url and judge_model):
        raise UsageError(
            "a judge needs to know what to judge by, and whom to ask",
            "give --rubric, --base-url and --judge-model",
        )
    said, left_open = [], 0
    for name in chosen:
        if name == "judge":
            assert rubric
            assert base_url
            assert judge_model
            found = _judge(run, rubric, base_url, judge_model, budget, concurrency, timeout, as_json)
            left_open += found["open"]
        elif name == STEERABILITY:
            found = _steerability(run, as_json)
        else:
            found = _plain(run, name, as_json)
        said.append(found)
    if as_json:
        click.echo(json.dumps(said, indent=2))
    if left_open:
        raise click.exceptions.Exit(INCOMPLETE)


def _plain(run: Path, name: str, quiet: bool) -> dict[str, Any]:
    from vsteer.evals.scorers import PLAIN
    from vsteer.scoring import score_texts

    done = score_texts(run, PLAIN[name])
    if not quiet:
        click.echo(
            f"{name}: {done.new:,} of {done.texts:,} texts scored, {done.standing:,} were: {done.path}"
        )
    return {
        "scorer": name, "hash": done.scorer_hash, "texts": done.texts, "standing": done.standing,
        "scored": done.new, "file": str(done.path),
    }  # fmt: skip


def _steerability(run: Path, quiet: bool) -> dict[str, Any]:
    from vsteer.analysis.steerability import HASH, write_steerability

    path, lines = write_steerability(run)
    if not quiet:
        click.echo(f"steerability: {lines:,} lines, one an item, letter order and steering: {path}")
    return {"scorer": "steerability", "hash": HASH, "lines": lines, "file": str(path)}


def _judge(
    run: Path,
    rubric: str,
    base_url: str,
    model: str,
    budget: int | None,
    concurrency: int,
    timeout: float,
    quiet: bool,
) -> dict[str, Any]:
    from vsteer.evals.endpoint import Endpoint
    from vsteer.evals.judge import MAX_TOKENS, judge_texts
    from vsteer.evals.rubrics import load_rubric

    endpoint = Endpoint(base_url, model, MAX_TOKENS, timeout=timeout)
    done = judge_texts(run, load_rubric(rubric), endpoint, budget, concurrency, _Told())
    if not quiet:
        click.echo(_said(done, rubric))
    return {
        "scorer": "judge", "hash": done.scorer_hash, "rubric": rubric, "model": model, "texts": done.texts,
        "standing": done.standing, "scored": done.scored, "unreadable": done.unreadable, "open": done.open,
        "asked": done.asked, "tokens": done.tokens, "over_budget": done.over_budget, "file": str(done.path),
    }  # fmt: skip


def _said(done: Judged, rubric: str) -> str:
    lines = [
        f"judge ({rubric}): {done.scored:,} of {done.texts:,} texts scored, {done.standing:,} were",
        f"in {done.path}",
        f"{done.unreadable:,} scored as failures: the judge's answer can't be read",
        f"asked {done.asked:,} questions; {done.tokens:,} tokens were spent on this judge in this run",
    ]
    if done.open:
        lines.append(f"{done.open:,} texts are open: the same command asks for them again")
    if done.over_budget:
        lines.append("the budget is spent: raise --budget to go on")
    if done.gave_up:
        lines.append("the endpoint gave no answer for so long that it was left alone")
    if done.last_fault:
        lines.append(f"last fault: {done.last_fault}")
    return "\n".join(lines)


class _Told:
    """A line a minute on stderr."""

    def __init__(self) -> None:
        from time import monotonic

        self._now, self._last = monotonic, monotonic()

    def __call__(self, done: Judged) -> None:
        if self._now() - self._last > 60:
            self._last = self._now()
            click.echo(
                f"{done.standing + done.scored:,} of {done.texts:,} scored | "
                f"{done.unreadable:,} unreadable | {done.unanswered:,} unanswered",
                err=True,
            )
