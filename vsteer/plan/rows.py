"""A row: one configuration of one question, one sample. What it asks of an engine, and what it records.

Rows are made when they are wanted and never all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vsteer.evaluations.choice import CannotScore, ChoiceScore, choice_requests, score_choice
from vsteer.evaluations.open_ended import open_requests
from vsteer.evaluations.prompt_spec import RenderedPrompt
from vsteer.evaluations.refusal_tokens import score_refusal_tokens
from vsteer.plan.configurations import Config
from vsteer.protocol import Request, Result, Steering

COUNTS = ("prompt_tokens", "cached_tokens", "steered_tokens")
NO_SCORE: dict[str, Any] = dict.fromkeys(
    (
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
    asked: RenderedPrompt
    sample: int
    seed: int

    @property
    def evaluation(self) -> str:
        return self.asked.evaluation

    def requests(self) -> tuple[Request, ...]:
        """What an engine must answer, named `row_id.0`, `row_id.1`, ...; mostly one request."""
        steering = None
        if self.config.positions is not None:
            # Absolute positions of the question's own prompt, so that an answer's tokens, which are forced
            # in some of the requests, do not move the span.
            span = self.asked.prompt.span(self.config.positions)
            steering = Steering(self.config.terms, span)
        if self.asked.ask.kind == "choice":
            return choice_requests(self.row_id, self.asked, steering)
        return open_requests(self.row_id, self.asked, steering, self.seed)

    def record(self, results: Sequence[Result]) -> dict[str, Any]:
        """The row in plain values, as far as it is known here; hashes, times and attempt are the run's.

        `results` are those of `requests()`, in that order, all of them. Counts are sums over them.
        """
        asked, ok = self.asked, all(result.status == "ok" for result in results)
        error = next((result.error or "no reason given" for result in results if result.status != "ok"), None)
        score = dict(NO_SCORE)
        if ok and asked.ask.kind == "choice":
            try:
                scored = score_refusal_tokens if asked.ask.refusal_tokens else score_choice
                score = _score_columns(scored(asked, results))
            except CannotScore as reason:
                ok, error = False, str(reason)
        first = results[0] if ok and asked.ask.kind == "open_ended" else None
        return {
            "row_id": self.row_id,
            "config_id": self.config.config_id,
            "item_id": asked.item_id,
            "prompt_id": asked.prompt_id,
            "evaluation": self.evaluation,
            "kind": asked.ask.kind,
            "sample": self.sample,
            "letter_order": asked.order,
            **self.config.axes(),
            "status": "ok" if ok else "error",
            "error": error,
            "text": first.text if first else None,
            "token_ids": list(first.token_ids) if first else None,
            "finish_reason": first.finish_reason if first else None,
            **score,
            **{count: sum(getattr(result, count) for result in results) if ok else None for count in COUNTS},
            "completion_tokens": sum(len(result.token_ids) for result in results) if ok else None,
        }


def row_of(request_id: str) -> tuple[str, int]:
    """Which row a request belongs to, and which of its requests it is."""
    row, _, n = request_id.rpartition(".")
    return row, int(n)


def _score_columns(score: ChoiceScore) -> dict[str, Any]:
    return {
        "choices": list(score.labels),
        "choice_logprobs": list(score.logprobs),
        "choice_tokens": list(score.tokens),
        "matching": score.matching,
        "total_mass": score.total_mass,
        "p_match": score.p_match,
        "logit_diff": score.logit_diff,
    }
