"""`vsteer score RUN --scorer NAME`: score the stored texts of a run, without generating anything."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vsteer.terminal import echo

if TYPE_CHECKING:
    from vsteer.engine.driver import VllmEngine
    from vsteer.engine.options import EngineOptions
    from vsteer.scoring.judge import Judged
    from vsteer.scoring.score_file import Scored

Entry = dict[str, Any]
INCOMPLETE = 3


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--scorer",
    "names",
    multiple=True,
    metavar="NAME",
    help="refusal, repetition, length, characters, perplexity or judge; may be repeated. By default "
    "the first four.",
)
@click.option("--rubric", help="judge: refusal, sentiment, language, or a text file.")
@click.option(
    "--base-url",
    help="judge: an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1. Without it the judge runs "
    "here.",
)
@click.option("--judge-model", help="judge: the model's name there; here a name, a folder or a hub id.")
@click.option(
    "--budget",
    type=click.IntRange(1, 10**15),
    help="judge: spend no more tokens on this run than this. A question that was sent counts, answered or "
    "not, since it may be billed.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="judge: how many questions at once.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 86_400),
    default=120.0,
    show_default=True,
    help="judge: seconds that one try may take as a whole.",
)
@click.option("--revision", help="judge here: the revision of a hub model.")
@click.option(
    "--dtype", default="bfloat16", show_default=True, help="judge here: bfloat16, float16, float32."
)
@click.option(
    "--tensor-parallel-size",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="judge here: over how many GPUs.",
)
@click.option(
    "--max-model-len",
    type=click.IntRange(1, 2**31 - 1),
    help="judge here: the longest prompt and answer, in tokens.",
)
@click.option("--eager", is_flag=True, help="judge here: start sooner, without compilation.")
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

    refusal, repetition, length and characters look at texts; perplexity loads the run's own model, unsteered,
    and asks how likely it finds each text; judge asks a model for a number from 0 to 10 by a rubric, at an
    endpoint or in the local engine. The same command scores only what is new; a judge's answer is never paid
    for twice. A judge's key is read from OPENAI_API_KEY in the environment. Exit codes: 0 complete, 3 a
    judge has texts left open.

    \b
    Example:
      vsteer score runs/quickstart --scorer refusal --scorer repetition
    """
    from vsteer.errors import UsageError
    from vsteer.scoring.perplexity import PERPLEXITY
    from vsteer.scoring.scorers import PLAIN

    chosen = list(dict.fromkeys(names or PLAIN))
    known = [*PLAIN, PERPLEXITY, "judge"]
    if unknown := [name for name in chosen if name not in known]:
        raise UsageError(f"no scorer is called {unknown[0]!r}", f"there are {', '.join(known)}")
    if "judge" in chosen and not (rubric and judge_model):
        raise UsageError(
            "a judge needs a rubric and a model",
            "give --rubric and --judge-model, and --base-url for a judge at an endpoint",
        )
    entries = []
    left_open = 0
    for name in chosen:
        if name == "judge":
            assert rubric
            assert judge_model
            if base_url is not None:
                judged = _judge(run, rubric, base_url, judge_model, budget, concurrency, timeout)
            else:
                from vsteer.engine.options import EngineOptions

                options = EngineOptions(
                    tensor_parallel_size=tensor_parallel_size,
                    max_model_len=max_model_len,
                    enforce_eager=eager,
                )
                judged = _judge_here(run, rubric, judge_model, budget, revision, dtype, options)
            left_open += judged.open
            scored = iter([_judged(judged, rubric, judge_model)])
        elif name == PERPLEXITY:
            scored = _perplexity(run)
        else:
            scored = iter([_plain(run, name)])
        for entry, text in scored:
            entries.append(entry)
            if not as_json:
                echo(text)
    if as_json:
        echo(json.dumps(entries, indent=2))
    if left_open:
        raise click.exceptions.Exit(INCOMPLETE)


def _entry(scorer: str, done: Scored, **more: Any) -> Entry:
    return {
        "scorer": scorer, "hash": done.scorer_hash, "texts": done.texts, "standing": done.standing,
        "scored": done.scored, "file": str(done.path), **more,
    }  # fmt: skip


def _plain(run: Path, name: str) -> tuple[Entry, str]:
    from vsteer.scoring.scorers import PLAIN
    from vsteer.scoring.stored_texts import score_texts

    done = score_texts(run, PLAIN[name])
    count = done.scored + done.failed
    text = f"{name}: {count:,} of {done.texts:,} texts scored, {done.standing:,} were: {done.path}"
    return _entry(name, done, scored=count), text


def _perplexity(run: Path) -> Iterator[tuple[Entry, str]]:
    """Score under each of the run's models in turn; one whose texts all have a score is not loaded."""
    from vsteer.run.loading import load_stored, stored_models
    from vsteer.scoring.perplexity import CoherenceFile

    progress = _Progress()
    for facts, spec in stored_models(run):
        with CoherenceFile(run, facts.name, facts.output_identity()) as file:
            if file.result.open:
                _loading(facts.name)
                with closing(load_stored(facts, spec)) as engine:
                    file.score(engine, progress)
        done = file.result
        text = (
            f"perplexity under {facts.name}: {done.scored:,} of {done.texts:,} texts scored, "
            f"{done.standing:,} were, {done.failed:,} have none: {done.path}"
        )
        yield _entry("perplexity", done, model=facts.name, failed=done.failed), text


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
    from vsteer.scoring.endpoint_judge import judge_texts
    from vsteer.scoring.judge import MAX_TOKENS
    from vsteer.scoring.rubrics import load_rubric

    endpoint = Endpoint(base_url, model, MAX_TOKENS, timeout=timeout)
    return judge_texts(run, load_rubric(rubric), endpoint, budget, concurrency, _Progress())


def _judge_here(
    run: Path,
    rubric: str,
    model: str,
    budget: int | None,
    revision: str | None,
    dtype: str,
    options: EngineOptions,
) -> Judged:
    from vsteer.models.hugging_face import load_tokenizer
    from vsteer.models.identity import model_sha256
    from vsteer.run.loading import fetched, load_named
    from vsteer.scoring.local_judge import judge_locally
    from vsteer.scoring.rubrics import load_rubric

    judge_by = load_rubric(rubric)
    folder = fetched(model, revision)
    with ExitStack() as stack:

        def load() -> VllmEngine:
            _loading(model)
            return stack.enter_context(closing(load_named(folder, dtype, options)))

        weights = {"sha256": model_sha256(folder), "dtype": dtype}
        tokenizer = load_tokenizer(str(folder))
        return judge_locally(run, judge_by, model, weights, tokenizer, load, budget, _Progress())


def _loading(model: str) -> None:
    echo(f"... {model}: loading it into vLLM (this takes a while)", err=True)


def _judged(done: Judged, rubric: str, model: str) -> tuple[Entry, str]:
    lines = [
        f"judge ({rubric}): {done.scored:,} of {done.texts:,} texts scored, {done.standing:,} were",
        f"in {done.path}",
        f"{done.failed:,} scored as failures: the judge's answer can't be read",
        f"asked {done.asked:,} questions; {done.tokens:,} tokens were spent on this judge in this run",
    ]
    if done.unsure:
        lines.append(f"of them {done.unsure:,} are no server's count: what may have been billed at most")
    if done.open:
        lines.append(f"{done.open:,} texts are open: the same command asks for them again")
    if done.over_budget:
        lines.append("the budget is spent: raise --budget to go on")
    if done.gave_up:
        lines.append("the endpoint gave no answer for so long that it was left alone")
    if done.last_fault:
        lines.append(f"last fault: {done.last_fault}")
    entry = _entry(
        "judge", done, rubric=rubric, model=model, unreadable=done.failed, open=done.open, asked=done.asked,
        tokens=done.tokens, unsure=done.unsure, over_budget=done.over_budget,
    )  # fmt: skip
    return entry, "\n".join(lines)


class _Progress:
    """Says on stderr, at most once a minute, how many texts have a score."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: Scored) -> None:
        if time.monotonic() - self._last > 60:
            self._last = time.monotonic()
            echo(f"{done.texts - done.open:,} of {done.texts:,} have a score | {done.faults}", err=True)
