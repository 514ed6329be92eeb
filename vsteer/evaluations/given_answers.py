"""Given answers: the requests that ask for their log-probabilities, and the log-probabilities read back.

An answer of several tokens has the sum of its tokens' log-probabilities, and each of them is read behind the
answer's own tokens before it. So a row has one request for every proper prefix of an answer, all with the
prompt in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vsteer.errors import SteeringFault
from vsteer.evaluations.evaluation import CannotScore
from vsteer.evaluations.rendered_prompt import RenderedPrompt
from vsteer.prompts.answers import Tokens
from vsteer.protocol import Prompt, Request, Result, Steering


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
    read: dict[Tokens, Mapping[int, float]] = {}
    for (prefix, tokens), result in zip(steps(rendered.answers).items(), results, strict=True):
        found = result.logprobs[0] if result.logprobs else {}
        if missing := [token for token in tokens if token not in found]:
            raise SteeringFault(f"request {result.id!r} came back without log-probabilities of {missing}")
        read[prefix] = found
    sums = [sum(read[tokens[:n]][token] for n, token in enumerate(tokens)) for tokens in rendered.answers]
    if any(math.isnan(value) for value in sums):
        raise CannotScore("the model's log-probabilities are not numbers (NaN)")
    return sums


def log_sum(values: Sequence[float]) -> float:
    """The logarithm of the sum of the exponentials."""
    highest = max(values)
    if highest == -math.inf:
        return highest
    return highest + math.log(sum(math.exp(value - highest) for value in values))
