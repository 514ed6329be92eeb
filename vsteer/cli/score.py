"""`vsteer score RUN --scorer NAME`: score the stored texts of a run, without generating anything."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from vsteer.engine.driver import VllmEngine
    from vsteer.scoring.judge import Judged
    from vsteer.scoring.perplexity_file import Coherence

INCOMPLETE = 3


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--scorer",
    "names",
    multiple=True,
    metavar="NAME",
    help="refusal, repetition, length, characters, steerability, statistics, perplexity or judge; may be "
    "repeated. By default the first four.",
)
@click.option("--rubric", help="judge: refusal, sentiment, language, or a text file.")
@click.option(
    "--base-url",
    help="judge: an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1. Without it the judge runs "
    "here.",
)
@click.option("--judge-model", help="judge: the model's name there; here a name, a folder or a hub id.")
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
@click.option("--revision", help="judge here: revision of a hub model.")
@click.option(
    "--dtype", default="bfloat16", show_default=True, help="judge here: bfloat16, float16, float32."
)
@click.option("--tensor-parallel-size", default=1, show_default=True, help="judge here: on so many GPUs.")
@click.option("--max-model-len", type=int, help="judge here: the longest prompt and answer, in tokens.")
@click.option("--eager", is_flag=True, help="judge here: without compilation, a quicker start.")
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
    revision: str | None,
    dtype: str,
    tensor_parallel_size: int,
    max_model_len: int | None,
    eager: bool,
    as_json: bool,
) -> None:
    """Score what the run in the folder RUN wrote, into RUN/scores/. Nothing is generated.

    refusal, repetition, length and characters look at texts; steerability fits a line to each choice item
    over its multipliers; statistics works intervals, held-out peaks and fits out of choices, into
    RUN/statistics/; perplexity loads the run's own model, unsteered, and asks how likely it holds each
    text; judge asks a model for a number from 0 to 10 by a rubric, at an endpoint or in the local engine. The
    same command scores only what is new; an answer of a judge is never paid for twice. A judge's key is read
    from OPENAI_API_KEY in the environment. Exit codes: 0 complete, 3 a judge has texts left open.

    \b
    Example:
      vsteer score runs/quickstart --scorer refusal --scorer repetition
    """
    from vsteer.errors import UsageError
    from vsteer.results.statistics_files import STATISTICS
    from vsteer.scoring.perplexity import PERPLEXITY
    from vsteer.scoring.scorers import PLAIN
    from vsteer.store.scores import STEERABILITY

    chosen = list(dict.fromkeys(names or PLAIN))
    known = [*PLAIN, STEERABILITY, STATISTICS, PERPLEXITY, "judge"]
    if unknown := [name for name in chosen if name not in known]:
        raise UsageError(f"no scorer is called {unknown[0]!r}", f"there are {', '.join(known)}")
    if "judge" in chosen and not (rubric and judge_model):
        raise UsageError(
            "a judge needs to know what to judge by, and whom to ask",
            "give --rubric and --judge-model, and --base-url where it is asked at an endpoint",
        )
    said: list[dict[str, Any]] = []
    left_open = 0
    for name in chosen:
        if name == "judge":
            assert rubric
            assert judge_model
            if base_url:
                judged = _judge(run, rubric, base_url, judge_model, budget, concurrency, timeout)
            else:
                here = (revision, dtype, tensor_parallel_size, max_model_len, eager)
                judged = _judge_here(run, rubric, judge_model, budget, *here)
            found = _judged(judged, rubric, judge_model, as_json)
            left_open += found["open"]
        elif name == PERPLEXITY:
            said += _perplexity(run, as_json)
            continue
        elif name == STEERABILITY:
            found = _steerability(run, as_json)
        elif name == STATISTICS:
            found = _statistics(run, as_json)
        else:
            found = _plain(run, name, as_json)
        said.append(found)
    if as_json:
        click.echo(json.dumps(said, indent=2))
    if left_open:
        raise click.exceptions.Exit(INCOMPLETE)


def _plain(run: Path, name: str, quiet: bool) -> dict[str, Any]:
    from vsteer.scoring.scorers import PLAIN
    from vsteer.scoring.stored_texts import score_texts

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


def _statistics(run: Path, quiet: bool) -> dict[str, Any]:
    from vsteer.analysis.statistics import write_statistics

    done = write_statistics(run)
    if not quiet:
        rows = ", ".join(f"{count:,} {name}" for name, count in done.rows.items())
        click.echo(f"statistics: {rows}: {done.folder}/")
    return {"scorer": "statistics", "rows": dict(done.rows), "folder": str(done.folder)}


def _perplexity(run: Path, quiet: bool) -> list[dict[str, Any]]:
    """Of each of the run's models, one after another; one whose texts all have theirs is not loaded."""
    from vsteer.run.loading import load_stored, stored_models
    from vsteer.scoring.perplexity_file import CoherenceFile

    said = []
    told = _Told()
    for facts, spec in stored_models(run):
        with CoherenceFile(run, facts.name, facts.identity()) as file:
            if file.result.open:
                click.echo(f"... {facts.name}: loading it into vLLM (this takes a while)", err=True)
                engine = load_stored(facts, spec)
                try:
                    file.score(engine, told)
                finally:
                    engine.close()
        done = file.result
        if not quiet:
            click.echo(
                f"perplexity under {done.model}: {done.scored:,} of {done.texts:,} texts scored, "
                f"{done.standing:,} were, {done.failed:,} have none: {done.path}"
            )
        said.append(
            {
                "scorer": "perplexity",
                "model": done.model,
                "hash": done.scorer_hash,
                "texts": done.texts,
                "standing": done.standing,
                "scored": done.scored,
                "failed": done.failed,
                "file": str(done.path),
            }
        )
    return said


def _judge(
    run: Path,
    rubric: str,
    base_url: str,
    model: str,
    budget: int | None,
    concurrency: int,
    timeout: float,
) -> Judged:
    from vsteer.scoring.endpoint import Endpoint
    from vsteer.scoring.judge import MAX_TOKENS, judge_texts
    from vsteer.scoring.rubrics import load_rubric

    endpoint = Endpoint(base_url, model, MAX_TOKENS, timeout=timeout)
    return judge_texts(run, load_rubric(rubric), endpoint, budget, concurrency, _Told())


def _judge_here(
    run: Path, rubric: str, model: str, budget: int | None, revision: str | None, dtype: str, *how: Any
) -> Judged:
    from vsteer.models.identity import model_sha256
    from vsteer.prompts.template import load_tokenizer
    from vsteer.run.loading import fetched, load_named
    from vsteer.scoring.local_judge import judge_locally
    from vsteer.scoring.rubrics import load_rubric

    asked = load_rubric(rubric)
    folder = fetched(model, revision)
    with ExitStack() as closing:

        def load() -> VllmEngine:
            click.echo(f"... {model}: loading it into vLLM (this takes a while)", err=True)
            engine = load_named(folder, dtype, *how)
            closing.callback(engine.close)
            return engine

        weights = {"sha256": model_sha256(folder), "dtype": dtype}
        tokenizer = load_tokenizer(str(folder))
        return judge_locally(run, asked, model, weights, tokenizer, load, budget, _Told())


def _judged(done: Judged, rubric: str, model: str, quiet: bool) -> dict[str, Any]:
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

    def __call__(self, done: Judged | Coherence) -> None:
        if self._now() - self._last > 60:
            self._last = self._now()
            click.echo(f"{done.texts - done.open:,} of {done.texts:,} have a score | {done.faults}", err=True)
