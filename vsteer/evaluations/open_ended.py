"""Open questions: the model's own words, greedy or sampled. `vsteer score` scores them afterwards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vsteer.datasets import items
from vsteer.evaluations.evaluation import Evaluation
from vsteer.evaluations.prompt_spec import PromptSpec, RenderedPrompt
from vsteer.prompts.answers import render
from vsteer.protocol import Prompt, Request, Steering
from vsteer.validation import Count, Texts, wrong


class OpenEndedSpec(Evaluation):
    kind: Literal["open_ended"]
    max_tokens: Count = 100
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    samples: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    stop: Texts | tuple[()] = ()
    coherence: bool = True  # each text's perplexity under the unsteered model; changes no row

    @model_validator(mode="after")
    def _samples_differ(self) -> OpenEndedSpec:
        if self.samples > 1 and self.temperature == 0:
            hint = "set a temperature above 0, or one sample"
            raise wrong("at temperature 0 every sample is the same", hint, "samples")
        return self


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
