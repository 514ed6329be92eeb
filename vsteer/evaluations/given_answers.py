"""Given answers: the requests that ask for their log-probabilities, and the log-probabilities read back.

An answer of several tokens has the sum of its tokens' log-probabilities, and each of them is read behind the
answer's own tokens before it. So a row has one request for every proper prefix of an answer, all with the
prompt in common.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vsteer.errors import SteeringFault
from vsteer.evaluations.evaluation import CannotScore, Evaluation, RowKind
from vsteer.evaluations.rendered_prompt import RenderedPrompt
from vsteer.prompts.answers import Tokens
from vsteer.protocol import Prompt, Request, Result, Steering

Floats = NDArray[np.float64]
NOT_NUMBERS = "the model's log-probabilities are not numbers (NaN)"


def steps(answers: Sequence[Tokens]) -> dict[Tokens, Tokens]:
    """Every proper prefix of an answer, the empty one first, and the tokens that are scored behind it."""
    scored: dict[Tokens, dict[int, None]] = {}
    for tokens in answers:
        for n, token in enumerate(tokens):
            scored.setdefault(tokens[:n], {})[token] = None
    return {
        prefix: tuple(scored[prefix]) for prefix in sorted(scored, key=lambda tokens: (len(tokens), tokens))
    }


def answer_requests(row_id: str, rendered: RenderedPrompt, steering: Steering | None) -> tuple[Request, ...]:
    """One request for each proper prefix. `steering` has an absolute span, which the prefixes don't move."""
    base = rendered.prompt
    return tuple(
        Request(
            f"{row_id}.{n}",
            Prompt(base.token_ids + prefix, base.template_length, base.user_turn_length),
            steering,
            max_tokens=1,
            logprob_token_ids=tokens,
            answer_tokens=len(prefix),
        )
        for n, (prefix, tokens) in enumerate(steps(rendered.answers).items())
    )


def answer_logprobs(rendered: RenderedPrompt, results: Sequence[Result]) -> list[float]:
    """Each answer's log-probability, summed over its tokens, from the results of `answer_requests`."""
    read: list[float] = []
    for tokens, result in zip(steps(rendered.answers).values(), results, strict=True):
        found = result.logprobs[0] if result.logprobs else {}
        if missing := [token for token in tokens if token not in found]:
            raise SteeringFault(f"request {result.id!r} came back without log-probabilities of {missing}")
        read += [found[token] for token in tokens]
    sums: list[float] = answer_sums(rendered.answers, np.array([read]))[0].tolist()
    if any(math.isnan(value) for value in sums):
        raise CannotScore(NOT_NUMBERS)
    return sums


def answer_sums(answers: Sequence[Tokens], logprobs: Floats) -> Floats:
    """The log-probabilities of answers, [row, answer], from those of the tokens, in the order of `steps`."""
    columns = {
        (prefix, token): n
        for n, (prefix, token) in enumerate((p, t) for p, tokens in steps(answers).items() for t in tokens)
    }
    sums = np.zeros((len(logprobs), len(answers)))
    for n, tokens in enumerate(answers):
        for length, token in enumerate(tokens):
            sums[:, n] += logprobs[:, columns[tokens[:length], token]]
    return sums


def log_sum(values: Floats) -> Floats:
    """The logarithms of the sums of the exponentials, for each row."""
    highest = values.max(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = highest + np.log(np.exp(values - highest[:, None]).sum(axis=1))
    return np.where(highest == -np.inf, highest, found)


@dataclass(frozen=True)
class Scores:
    """The columns of rows of one prompt that hold what was answered. NaN stands for null."""

    choices: tuple[str, ...]
    choice_tokens: tuple[int, ...]
    matching: int
    choice_logprobs: Floats  # [row, choice]
    total_mass: Floats
    p_match: Floats
    logit_diff: Floats
    errors: Mapping[int, str]  # the rows that say nothing, and why


def scores_of_answers(
    labels: tuple[str, ...], rendered: RenderedPrompt, match: int, against: int | None, sums: Floats
) -> Scores:
    """The answer at `match` beside the one at `against`, or beside all others."""
    rest = np.delete(sums, match, axis=1) if against is None else sums[:, [against]]
    # Nothing over nothing is no number, which is null; nor is a lone answer's difference.
    with np.errstate(invalid="ignore"):
        return Scores(
            choices=labels,
            choice_tokens=tuple(map(len, rendered.answers)),
            matching=match,
            choice_logprobs=sums,
            total_mass=np.exp(sums).sum(axis=1),
            # from logarithms, so that two answers of e^-800 still have a ratio
            p_match=np.exp(sums[:, match] - log_sum(sums)),
            logit_diff=sums[:, match] - log_sum(rest) if rest.size else np.full(len(sums), np.nan),
            errors={},
        )


class GivenAnswersEvaluation(Evaluation):
    """A kind whose questions have given answers: nothing is generated, and a prompt's rows are one block."""

    row_kind: ClassVar[RowKind] = "choice"
    has_controls: ClassVar[bool] = True

    @abstractmethod
    def scores(self, rendered: RenderedPrompt, sums: Floats) -> Scores:
        """What the answers' log-probabilities, [row, answer], say."""

    def requests(
        self, row_id: str, rendered: RenderedPrompt, steering: Steering | None, seed: int
    ) -> tuple[Request, ...]:
        return answer_requests(row_id, rendered, steering)

    def columns(self, rendered: RenderedPrompt, results: Sequence[Result]) -> dict[str, Any]:
        scores = self.scores(rendered, np.array([answer_logprobs(rendered, results)]))
        if scores.errors:
            raise CannotScore(scores.errors[0])
        return {
            "choices": list(scores.choices),
            "choice_logprobs": scores.choice_logprobs[0].tolist(),
            "choice_tokens": list(scores.choice_tokens),
            "matching": scores.matching,
            "total_mass": float(scores.total_mass[0]),
            "p_match": _or_none(scores.p_match[0]),
            "logit_diff": _or_none(scores.logit_diff[0]),
        }


def _or_none(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
