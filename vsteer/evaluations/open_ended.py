"""Open-ended questions: the model's own words, greedy or sampled, stored as text.

Scorers read the texts afterwards (`vsteer score`): refusal phrases, an LLM judge. Their perplexity under the
unsteered model, which shows where steering breaks the text, is worked out while the model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vsteer.datasets import items
from vsteer.datasets.readers import read_prompts
from vsteer.evaluations.evaluation import (
    BEYOND_LIMIT,
    REPEATED,
    DataEvaluation,
    Questions,
    RowKind,
    Sampling,
)
from vsteer.evaluations.rendered_prompt import AnyItem, RenderedPrompt, Rendering
from vsteer.prompts.template import render_question
from vsteer.protocol import Request, Result, Steering
from vsteer.validation import Count, Texts, wrong


class OpenEndedEvaluation(DataEvaluation):
    row_kind: ClassVar[RowKind] = "open_ended"
    builtin_part: ClassVar[str] = "open"
    has_controls: ClassVar[bool] = False

    kind: Literal["open_ended"]
    max_tokens: Count = 100
    """The longest text, in tokens."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens that have this much probability together; unused at temperature 0."""
    samples: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """How many texts a question gets; more than one needs a temperature."""
    stop: Texts | tuple[()] = ()
    """Texts at which an answer ends."""
    coherence: bool = True
    """Work out each text's perplexity under the unsteered model at the run's end. It changes no row."""

    @model_validator(mode="after")
    def _samples_differ(self) -> OpenEndedEvaluation:
        if self.samples > 1 and self.temperature == 0:
            hint = "set a temperature above 0, or one sample"
            raise wrong("at temperature 0 every sample is the same", hint, "samples")
        return self

    @property
    def sampling(self) -> Sampling:
        top_p = self.top_p if self.temperature > 0 else 1.0
        return Sampling(self.max_tokens, self.temperature, top_p, self.samples)

    @property
    def wants_perplexity(self) -> bool:
        return self.coherence

    def identity(self, seed: int) -> dict[str, Any]:
        drawn = {"max_tokens": self.max_tokens, "temperature": self.temperature, "stop": list(self.stop)}
        # Greedy decoding throws no dice.
        return drawn | ({"top_p": self.top_p, "seed": seed} if self.temperature > 0 else {})

    def questions(self, path: Path) -> Questions:
        return prompts_of(path, self.limit)

    def render(self, tokenizer: Any, item: AnyItem, system: str | None) -> Rendering:
        assert isinstance(item, items.Prompt)
        return Rendering(render_question(tokenizer, item.text, system, self.answer_prefix or ""))

    def estimate(self, item: AnyItem, system: str | None) -> Rendering:
        assert isinstance(item, items.Prompt)
        return Rendering(self.estimated_prompt(item.text, system))

    def requests(
        self, row_id: str, rendered: RenderedPrompt, steering: Steering | None, seed: int
    ) -> tuple[Request, ...]:
        return (text_request(row_id, rendered, steering, self.sampling, self.stop, seed),)

    def columns(self, rendered: RenderedPrompt, results: Sequence[Result]) -> dict[str, Any]:
        return text_columns(results)


def text_request(
    row_id: str,
    rendered: RenderedPrompt,
    steering: Steering | None,
    sampling: Sampling,
    stop: tuple[str, ...],
    seed: int,
) -> Request:
    """The one request of a row that has a text."""
    return Request(
        f"{row_id}.0",
        rendered.prompt,
        steering,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed if sampling.temperature > 0 else None,
        stop=stop,
    )


def text_columns(results: Sequence[Result]) -> dict[str, Any]:
    """The columns of a row that has a text, from its one result."""
    (result,) = results
    return {
        "text": result.text,
        "token_ids": list(result.token_ids),
        "finish_reason": result.finish_reason,
    }


def prompts_of(path: Path, limit: int | None) -> Questions:
    """The prompts of a file without answers, each once, in the file's order."""
    found = read_prompts(path)
    unique = {prompt.item_id: prompt for prompt in reversed(found.prompts)}
    chosen = list(unique.values())[::-1][:limit]
    left_out = {REPEATED: found.duplicates, BEYOND_LIMIT: len(unique) - len(chosen)}
    return Questions.of([(prompt, "original") for prompt in chosen], found.source, left_out)
