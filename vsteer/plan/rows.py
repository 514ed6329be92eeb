"""A row: one configuration of one question, one sample. What it asks of an engine, and what it records.

Rows are made when they are wanted, a prompt's at once, and never all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vsteer.evaluations.evaluation import CannotScore
from vsteer.evaluations.given_answers import GivenAnswersEvaluation
from vsteer.evaluations.rendered_prompt import RenderedPrompt
from vsteer.identity import row_id, sampling_seed
from vsteer.plan.configurations import Config
from vsteer.protocol import Request, Result, Steering

COUNTS = ("prompt_tokens", "cached_tokens", "steered_tokens")
# What was answered, of which each kind of evaluation fills in a part.
NO_ANSWER: dict[str, Any] = dict.fromkeys(
    (
        "text",
        "token_ids",
        "finish_reason",
        "choices",
        "choice_logprobs",
        "choice_tokens",
        "matching",
        "total_mass",
        "p_match",
        "logit_diff",
    )
)


@dataclass(frozen=True, slots=True)
class Row:
    row_id: str
    config: Config
    rendered: RenderedPrompt
    sample: int
    seed: int

    @property
    def evaluation(self) -> str:
        return self.rendered.evaluation

    def requests(self) -> tuple[Request, ...]:
        """What an engine must answer, named `row_id.0`, `row_id.1`, ...; mostly one request."""
        steering = None
        if self.config.positions is not None:
            # Absolute positions of the question's own prompt, so that an answer's tokens, which are forced
            # in some of the requests, do not move the span.
            span = self.rendered.prompt.span(self.config.positions)
            steering = Steering(self.config.terms, span)
        return self.config.spec.evaluation.requests(self.row_id, self.rendered, steering, self.seed)

    def record(self, results: Sequence[Result]) -> dict[str, Any]:
        """The row in plain values, as far as it is known here; hashes, times and attempt are the run's.

        `results` are those of `requests()`, in that order, all of them. Counts are sums over them.
        """
        rendered, evaluation = self.rendered, self.config.spec.evaluation
        error = next((result.error or "no reason given" for result in results if result.status != "ok"), None)
        answer: dict[str, Any] = {}
        if error is None:
            try:
                answer = evaluation.columns(rendered, results)
            except CannotScore as reason:
                error = str(reason)
        ok = error is None
        return {
            "row_id": self.row_id,
            "config_id": self.config.config_id,
            "item_id": rendered.item_id,
            "prompt_id": rendered.prompt_id,
            "evaluation": self.evaluation,
            "kind": evaluation.row_kind,
            "sample": self.sample,
            "letter_order": rendered.order,
            **self.config.axes(),
            "status": "ok" if ok else "error",
            "error": error,
            **NO_ANSWER,
            **answer,
            **{count: sum(getattr(result, count) for result in results) if ok else None for count in COUNTS},
            "completion_tokens": sum(len(result.token_ids) for result in results) if ok else None,
            # where it doesn't hold, nothing is asked of an engine: see vsteer/run/conditions.py
            "condition_met": self.config.condition_met,
        }


@dataclass(frozen=True)
class PromptRows:
    """The rows of one prompt: configuration by configuration, and for each its samples."""

    configs: tuple[Config, ...]
    rendered: RenderedPrompt
    samples: int
    run_seed: int

    @property
    def count(self) -> int:
        return len(self.configs) * self.samples

    @property
    def is_block(self) -> bool:
        """Whether its answers are given, so that all its rows can be scored at once."""
        return isinstance(self.configs[0].spec.evaluation, GivenAnswersEvaluation)

    def rows(self, places: Iterable[int]) -> Iterator[Row]:
        """The rows at these places among the prompt's."""
        item_id, order = self.rendered.item_id, self.rendered.order
        seeds: dict[int, int] = {}
        for place in places:
            n, sample = divmod(place, self.samples)
            if sample not in seeds:
                seeds[sample] = sampling_seed(self.run_seed, item_id, order, sample)
            config = self.configs[n]
            name = row_id(config.config_id, item_id, order, sample)
            yield Row(name, config, self.rendered, sample, seeds[sample])


def row_of(request_id: str) -> tuple[str, int]:
    """Which row a request belongs to, and which of its requests it is."""
    row, _, n = request_id.rpartition(".")
    return row, int(n)
