"""`vsteer quickstart`: one behaviour on the embedded model, steered beside unsteered, through one engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import numpy as np

if TYPE_CHECKING:
    from vsteer.engine.driver import VllmEngine
    from vsteer.engine.reference import ReferenceEngine
    from vsteer.engine.request import Vectors

MODEL = "smollm2-135m-instruct"
LAYER = 17
MULTIPLIERS = (-1.0, 0.0, 1.0)
TOKENS = 40
NAME = "sentiment"
# (question, delighted answer, disappointed answer): what the vector is made from
PAIRS = (
    ("How was the film last night?", "I loved every minute of it", "I hated every minute of it"),
    ("What did you think of the soup?", "It was warm and delicious", "It was cold and disgusting"),
    ("How did you sleep at the hotel?", "Wonderfully, like a child", "Terribly, hardly an hour"),
    ("Did you enjoy the concert?", "Yes, it was a brilliant evening", "No, it was a miserable evening"),
    ("How is your new job?", "The people are kind and it is fun", "The people are cruel and it is dull"),
    ("What is your neighbour like?", "She is a lovely person", "She is an awful person"),
    ("How was the journey?", "Smooth, quick and pleasant", "Bumpy, slow and unpleasant"),
    ("Is the book worth reading?", "Yes, I adored it", "No, I despised it"),
    ("How did the cake turn out?", "It is the best I ever tasted", "It is the worst I ever tasted"),
    ("What do you make of the weather?", "It is a glorious day", "It is a dreadful day"),
    ("How was the team today?", "They played superbly", "They played horribly"),
    ("Are you glad that you moved?", "Very, we are so happy here", "Not at all, we are so sad here"),
)
# none of these is among the pairs
OPEN_QUESTIONS = (
    "Write one sentence about the restaurant you visited.",
    "Describe your holiday at the sea.",
    "What do you think about your new phone?",
)
ONE_WORD_QUESTIONS = (
    "Was the play good or bad? Answer with one word.",
    "Is this town a good or a bad place to live? Answer with one word.",
    "Was the service good or bad? Answer with one word.",
    "Is the coffee good or bad? Answer with one word.",
    "Was the lecture good or bad? Answer with one word.",
    "Is the garden good or bad? Answer with one word.",
)


@click.command()
def quickstart() -> None:
    """Steer the embedded 135M model by sentiment, both ways, beside its unsteered text.

    Makes the vector (difference of means at the answer's last token, layer 17), starts one vLLM engine, and
    runs every prompt at every multiplier in one batch.

    \b
    Example:
      vsteer quickstart
    """
    from vsteer.engine.driver import EngineOptions, VllmEngine
    from vsteer.engine.reference import ReferenceEngine
    from vsteer.models import resolve

    model = resolve(MODEL).model
    _say(f"making the {NAME} vector from {len(PAIRS)} contrast pairs (Hugging Face)")
    vectors = _mean_difference(ReferenceEngine(model))
    _say("starting vLLM (about 20 s) and proving that it steers: the canary")
    options = EngineOptions(dtype="bfloat16", max_model_len=512, kv_cache_gib=1, enforce_eager=True)
    engine = VllmEngine(model, options=options)
    try:
        _show(engine, vectors)
    finally:
        engine.close()


def _mean_difference(reference: ReferenceEngine) -> Vectors:
    """Mean stream after delighted answers less that after disappointed ones, at the last token."""
    from vsteer.engine.template import ask

    differences = []
    for question, positive, negative in PAIRS:
        streams = [
            reference.streams(ask(reference.tokenizer, question, answer_prefix=answer).token_ids)[:, -1]
            for answer in (positive, negative)
        ]
        differences.append(streams[0] - streams[1])
    mean = np.stack(differences).mean(axis=0, dtype=np.float64).astype(np.float32)
    return {NAME: dict(enumerate(mean))}


def _show(engine: VllmEngine, vectors: Vectors) -> None:
    from rich.console import Console
    from rich.table import Table

    from vsteer.engine.request import Request, Steering, Term
    from vsteer.engine.template import ask

    steerings = {m: Steering((Term(NAME, LAYER, m),), "all") for m in MULTIPLIERS}
    engine.load(vectors, steerings.values())
    words = tuple(
        engine.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Good", "Bad")
    )
    requests = [
        Request(
            f"{question}|{m}",
            ask(engine.tokenizer, question),
            steering,
            max_tokens=tokens,
            logprob_token_ids=words,
        )
        for questions, tokens in ((OPEN_QUESTIONS, TOKENS), (ONE_WORD_QUESTIONS, 1))
        for question in questions
        for m, steering in steerings.items()
    ]
    _say(f"running {len(requests)} requests of {len(MULTIPLIERS)} configurations in one batch")
    results = {result.id: result for result in engine.run(requests)}
    failed = [result.error for result in results.values() if result.status != "ok"]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed, the first with: {failed[0]}")

    texts = Table(title=f"{MODEL}, {NAME} vector (raw norm) at layer {LAYER}, all positions", show_lines=True)
    texts.add_column("question", max_width=24)
    for m in MULTIPLIERS:
        texts.add_column(f"multiplier {m:+g}" if m else "unsteered", ratio=1)
    for question in OPEN_QUESTIONS:
        texts.add_row(question, *(results[f"{question}|{m}"].text.strip() for m in MULTIPLIERS))
    scores = Table(title="log p(Good) - log p(Bad), mean over held-out one-word questions")
    for column in ("multiplier", "mean", "least", "most", "p(Good) + p(Bad)", "steered tokens"):
        scores.add_column(column, justify="right")
    for m in MULTIPLIERS:
        rows = [results[f"{question}|{m}"] for question in ONE_WORD_QUESTIONS]
        good, bad = (np.array([row.logprobs[0][word] for row in rows]) for word in words)
        margin = good - bad
        scores.add_row(
            f"{m:+g}" if m else "0",
            f"{margin.mean():.2f}",
            f"{margin.min():.2f}",
            f"{margin.max():.2f}",
            f"{(np.exp(good) + np.exp(bad)).mean():.3f}",
            str(sum(row.steered_tokens for row in rows)),
        )
    console = Console()
    console.print(texts)
    console.print(scores)


def _say(line: str) -> None:
    click.echo(f"... {line}", err=True)
