"""Choice questions: the probability of each answer of an item, by the item's own letters or words.

An answer of several tokens has the sum of their log-probabilities; each is read after the answer's own tokens
before it, so a row asks one request for every proper prefix of an answer, all with the prompt in common. Of a
lettered answer `(A)` the bracket before the letter is forced as the model's template wants it, the letter is
scored, and the bracket after it is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator

from vsteer.datasets.choices import refers_to_choices
from vsteer.datasets.items import Item, swapped
from vsteer.errors import SteeringFault
from vsteer.evaluations.evaluation import Evaluation
from vsteer.evaluations.prompt_spec import Order, PromptSpec, RenderedPrompt
from vsteer.prompts.answers import AmbiguousAnswers, Tokens, cut_letters, cut_words, gap, render
from vsteer.protocol import Prompt, Request, Result, Steering
from vsteer.validation import wrong

CAA_PREFIX = " ("


class ChoiceSpec(Evaluation):
    kind: Literal["choice"]
    letter_orders: Literal["both", "original"] | None = None
    caa_compat: bool = False

    @property
    def both_orders(self) -> bool:
        return (self.letter_orders or ("original" if self.caa_compat else "both")) == "both"

    @model_validator(mode="after")
    def _one_prefix(self) -> ChoiceSpec:
        if self.caa_compat and self.answer_prefix is not None:
            raise wrong(
                "caa_compat forces ' (' before the answer", "leave one of the two out", "answer_prefix"
            )
        return self


class CannotAsk(ValueError):
    """Why an item can't be asked this way; the plan adds where it stands."""


class CannotScore(ValueError):
    """Why a row's results say nothing: the row failed."""


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """What one row says of its item. Probabilities are the model's own, over all tokens."""

    labels: tuple[str, ...]
    logprobs: tuple[float, ...]  # of each answer, summed over its tokens
    tokens: tuple[int, ...]  # how many each has, for the length-normalised value
    matching: int  # which of the labels matches
    total_mass: float  # what all answers have together: a ratio alone hides a broken model
    p_match: float | None  # p(matching) / total mass; None where no answer has any
    logit_diff: float | None  # matching against not matching; against all others where the file names none

    @property
    def logprobs_per_token(self) -> tuple[float, ...]:
        return tuple(value / count for value, count in zip(self.logprobs, self.tokens, strict=True))


def orders(item: Item, both: bool) -> list[tuple[Order, Item]]:
    """The item as it stands and, where it can be had, with its choices in the other order."""
    asked: list[tuple[Order, Item]] = [("original", item)]
    other = swapped(item) if both and not refers_to_choices(item.question) else None
    return [*asked, ("swapped", other)] if other else asked


def ask_choice(
    tokenizer: Any, item: Item, ask: PromptSpec
) -> tuple[Prompt, tuple[int, ...], tuple[Tokens, ...]]:
    """The prompt up to the first scored token, which choices are scored, and the scored tokens of each."""
    scored = scored_choices(item, ask)
    texts = [item.choices[n].answer for n in scored]
    before = ask.answer_prefix or gap(tokenizer, item.question, ask.system)
    if ask.caa_compat:
        before = CAA_PREFIX[:1]
    if item.lettered or ask.answer_prefix is None or before[-1:].isspace():
        texts = [text.strip() for text in texts]  # the space before the answer, if any, is there already
    whole = [render(tokenizer, item.question, ask.system, before + text) for text in texts]
    renderings = [prompt.token_ids for prompt in whole]
    try:
        if item.lettered:
            start, answers = cut_letters(renderings)
        else:
            forced = render(tokenizer, item.question, ask.system, before)
            start, answers = cut_words(forced.token_ids, renderings)
    except AmbiguousAnswers:
        named = ", ".join(map(repr, texts))
        raise CannotAsk(f"in this model's tokens one of its answers begins another: {named}") from None
    prompt = Prompt(renderings[0][:start], whole[0].template_length, whole[0].user_turn_length)
    if ask.caa_compat:
        recipe = render(tokenizer, item.question, ask.system, CAA_PREFIX)
        if recipe.token_ids != prompt.token_ids or any(len(tokens) > 1 for tokens in answers):
            raise CannotAsk("this tokenizer joins bracket and letter, so CAA's recipe can't be followed")
    return prompt, scored, answers


def scored_choices(item: Item, ask: PromptSpec) -> tuple[int, ...]:
    """All of them; under `caa_compat` the two that the file names, in the item's order."""
    if not ask.caa_compat:
        return tuple(range(len(item.choices)))
    if not item.lettered or item.not_matching is None:
        raise CannotAsk("caa_compat scores two letters, and this item doesn't name two")
    return tuple(sorted((item.matching, item.not_matching)))


def steps(answers: Sequence[Tokens]) -> dict[Tokens, Tokens]:
    """Every proper prefix of an answer, the empty one first, and the tokens asked about after it."""
    asked: dict[Tokens, dict[int, None]] = {}
    for tokens in answers:
        for n, token in enumerate(tokens):
            asked.setdefault(tokens[:n], {})[token] = None
    return {
        prefix: tuple(asked[prefix]) for prefix in sorted(asked, key=lambda tokens: (len(tokens), tokens))
    }


def choice_requests(row_id: str, asked: RenderedPrompt, steering: Steering | None) -> tuple[Request, ...]:
    """One request a proper prefix. `steering` has an absolute span: the prefixes must not move it."""
    base = asked.prompt
    return tuple(
        Request(
            f"{row_id}.{n}",
            Prompt(base.token_ids + prefix, base.template_length, base.user_turn_length),
            steering,
            max_tokens=1,
            logprob_token_ids=tokens,
        )
        for n, (prefix, tokens) in enumerate(steps(asked.answers).items())
    )


def answer_logprobs(asked: RenderedPrompt, results: Sequence[Result]) -> list[float]:
    """Each answer's log-probability, summed over its tokens, from the results of `choice_requests`."""
    read: dict[Tokens, Mapping[int, float]] = {}
    for (prefix, tokens), result in zip(steps(asked.answers).items(), results, strict=True):
        found = result.logprobs[0] if result.logprobs else {}
        if missing := [token for token in tokens if token not in found]:
            raise SteeringFault(f"request {result.id!r} came back without log-probabilities of {missing}")
        read[prefix] = found
    sums = [sum(read[tokens[:n]][token] for n, token in enumerate(tokens)) for tokens in asked.answers]
    if any(math.isnan(value) for value in sums):
        raise CannotScore("the model's log-probabilities are not numbers (NaN)")
    return sums


def score_choice(asked: RenderedPrompt, results: Sequence[Result]) -> ChoiceScore:
    """The score from the results of `choice_requests`, in their order."""
    sums = answer_logprobs(asked, results)
    item, match = asked.item, asked.matching
    assert isinstance(item, Item)
    assert match is not None
    others = [value for n, value in enumerate(sums) if n != match]
    against = log_sum(others) if item.not_matching is None else sums[asked.scored.index(item.not_matching)]
    mass = sum(map(math.exp, sums))
    return ChoiceScore(
        asked.labels,
        tuple(sums),
        tuple(map(len, asked.answers)),
        match,
        mass,
        # from logarithms, so that two answers of e^-800 still have a ratio
        math.exp(sums[match] - log_sum(sums)) if log_sum(sums) > -math.inf else None,
        sums[match] - against if max(sums[match], against) > -math.inf else None,
    )


def log_sum(values: Sequence[float]) -> float:
    highest = max(values)
    if highest == -math.inf:
        return highest
    return highest + math.log(sum(math.exp(value - highest) for value in values))
