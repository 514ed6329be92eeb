"""Open questions: the model's own words, greedy or sampled. Scoring them is another step (issue: scorers)."""

from __future__ import annotations

from typing import Any

from vsteer.datasets import items
from vsteer.evaluations.prompt_spec import PromptSpec, RenderedPrompt
from vsteer.prompts.answers import render
from vsteer.protocol import Prompt, Request, Steering


def ask_open(tokenizer: Any, item: items.Prompt, ask: PromptSpec) -> Prompt:
    return render(tokenizer, item.text, ask.system, ask.answer_prefix or "")


def open_requests(
    row_id: str, asked: RenderedPrompt, steering: Steering | None, seed: int
) -> tuple[Request, ...]:
    ask = asked.ask
    sampled = ask.temperature > 0
    request = Request(
        f"{row_id}.0",
        asked.prompt,
        steering,
        max_tokens=ask.max_tokens,
        temperature=ask.temperature,
        top_p=ask.top_p if sampled else 1.0,
        seed=seed if sampled else None,
        stop=ask.stop,
    )
    return (request,)
