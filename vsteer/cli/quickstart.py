"""`vsteer quickstart`: one behaviour on the embedded model, steered beside unsteered, through one engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vsteer.engine.driver import VllmEngine
    from vsteer.engine.reference import ReferenceEngine
    from vsteer.engine.request import Vectors

MODEL = "smollm2-135m-instruct"
LAYER = 17
# unsteered first: the others are compared with it
MULTIPLIERS = (0.0, -1.0, 1.0)
TOKENS = 40
NAME = "sentiment"
# of the built-in data: enough for a direction that works, little enough to be quick
PAIRS, QUESTIONS, OPEN = 32, 24, 3


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
    _say(f"making the {NAME} vector from {PAIRS} contrast pairs (Hugging Face)")
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
    from vsteer.vectors.builtin import data_path
    from vsteer.vectors.contrast import read_questions

    differences = []
    for pair in read_questions(data_path(NAME, "pairs")).items[:PAIRS]:
        streams = [
            reference.streams(ask(reference.tokenizer, pair.question, answer_prefix=answer).token_ids)[:, -1]
            for answer in (pair.positive, pair.negative)
        ]
        differences.append(streams[0] - streams[1])
    mean = np.stack(differences).mean(axis=0, dtype=np.float64).astype(np.float32)
    return {NAME: dict(enumerate(mean))}


def _show(engine: VllmEngine, vectors: Vectors) -> None:
    from rich.console import Console
    from rich.table import Table

    from vsteer.engine.request import Request, Steering, Term
    from vsteer.engine.template import ask
    from vsteer.vectors.builtin import data_path
    from vsteer.vectors.contrast import read_prompts, read_questions

    steerings = {m: Steering((Term(NAME, LAYER, m),), "all") for m in MULTIPLIERS}
    engine.load(vectors, steerings.values())
    answers = {
        item.question: [_first_token(engine, item.positive), _first_token(engine, item.negative)]
        for item in read_questions(data_path(NAME, "questions")).items[:QUESTIONS]
    }
    asked: list[tuple[str, int, tuple[int, ...]]] = [
        (prompt.text, TOKENS, ()) for prompt in read_prompts(data_path(NAME, "open")).prompts[:OPEN]
    ]
    asked += [(question, 1, tuple(words)) for question, words in answers.items()]
    requests = [
        Request(
            f"{question}|{m}",
            ask(engine.tokenizer, question),
            steering,
            max_tokens=tokens,
            logprob_token_ids=words,
        )
        for question, tokens, words in asked
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
    for question, _, _ in asked[:OPEN]:
        texts.add_row(question, *(results[f"{question}|{m}"].text.strip() for m in MULTIPLIERS))
    scores = Table(title=f"log p(positive) - log p(negative) of {QUESTIONS} held-out one-word questions")
    for column in ("multiplier", "mean", "least", "most", "moved as meant", "p(both)", "steered tokens"):
        scores.add_column(column, justify="right")
    margins: dict[float, NDArray[np.float64]] = {}
    for m in MULTIPLIERS:
        rows = [(results[f"{question}|{m}"].logprobs[0], words) for question, words in answers.items()]
        pairs = np.array([[logprobs[word] for word in words] for logprobs, words in rows])
        margins[m] = pairs[:, 0] - pairs[:, 1]
        moved = [] if m == 0 else [((margins[m] - margins[0.0]) * m > 0).mean()]
        scores.add_row(
            f"{m:+g}" if m else "0",
            *(f"{figure:.2f}" for figure in (margins[m].mean(), margins[m].min(), margins[m].max())),
            "".join(f"{share:.0%}" for share in moved),
            f"{np.exp(pairs).sum(axis=1).mean():.3f}",
            str(sum(results[f"{question}|{m}"].steered_tokens for question in answers)),
        )
    console = Console()
    console.print(texts)
    console.print(scores)


def _first_token(engine: VllmEngine, word: str) -> int:
    token: int = engine.tokenizer(word, add_special_tokens=False)["input_ids"][0]
    return token


def _say(line: str) -> None:
    click.echo(f"... {line}", err=True)
