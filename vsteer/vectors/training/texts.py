"""Contrast pairs as texts to learn from: responses in tokens behind their prompt, and the pairs held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vsteer.datasets.items import Item, ItemSet
from vsteer.errors import DataError, UsageError
from vsteer.identity import derived_seed
from vsteer.prompts.template import render_question, with_gap
from vsteer.protocol import Positions, Prompt


@dataclass(frozen=True)
class Text:
    """A prompt with the first tokens of a response to it."""

    token_ids: tuple[int, ...]
    start: int  # where the response begins
    span: tuple[int, int]  # the positions that are steered


@dataclass(frozen=True)
class Pair:
    """A prompt with a response that shows the behaviour, and one that doesn't."""

    positive: Text
    negative: Text

    def swapped(self) -> Pair:
        return Pair(self.negative, self.positive)


@dataclass(frozen=True)
class Example:
    """What one loss is of: sign 1 is to bring about the positive response, -1 the negative one."""

    pair: Pair
    sign: int

    @property
    def wanted(self) -> Text:
        return self.pair.positive if self.sign > 0 else self.pair.negative

    @property
    def unwanted(self) -> Text:
        return self.pair.negative if self.sign > 0 else self.pair.positive


def read_pairs(
    tokenizer: Any, data: ItemSet, tokens: int, positions: Positions, system: str | None, longest: int
) -> list[Pair]:
    """Every pair of the data, its responses cut after `tokens` tokens."""
    return [_pair(tokenizer, data, item, tokens, positions, system, longest) for item in data.items]


def _pair(
    tokenizer: Any,
    data: ItemSet,
    item: Item,
    tokens: int,
    positions: Positions,
    system: str | None,
    longest: int,
) -> Pair:
    where = f"{data.source.path}, line {item.line}"
    texts = []
    for response in (item.positive, item.negative):
        answer = with_gap(tokenizer, item.question, response, system)
        whole = render_question(tokenizer, item.question, system, answer)
        start = whole.template_length
        ids = whole.token_ids[: start + tokens]
        if len(ids) > longest:
            raise DataError(
                f"{where}: prompt and response have {len(ids)} tokens, and the model reads {longest}",
                "shorten the prompt, or take fewer --tokens of the response",
            )
        asked = Prompt(ids[:start], whole.template_length, whole.user_turn_length)
        span = asked.span(positions)
        # the last token's stream predicts nothing that is scored
        if not any(span[0] <= at < span[1] for at in range(len(ids) - 1)):
            raise UsageError(
                f"{where}: the positions {positions} hold no token that acts on the response",
                "take positions that begin in the prompt, such as all",
            )
        texts.append(Text(ids, start, span))
    if texts[0].token_ids == texts[1].token_ids:
        raise DataError(
            f"{where}: the two responses are alike in their first {tokens} tokens",
            "take the pair out, or take more --tokens of the responses",
        )
    return Pair(*texts)


def held_out(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Which of `count` pairs are learned from, and which only choose the epoch: at least one each."""
    if count < 2:
        raise UsageError(
            f"there is {count} pair, and one is learned from while another is held out", "give more pairs"
        )
    order = np.random.default_rng(derived_seed(seed, "held out")).permutation(count).tolist()
    aside = min(max(1, round(share * count)), count - 1)
    return sorted(order[aside:]), sorted(order[:aside])


def with_shuffled_labels(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The pairs, in half of which at random the responses have changed places: a control for learning."""
    swaps = np.random.default_rng(derived_seed(seed, "shuffled labels")).random(len(pairs)) < 0.5
    return [pair.swapped() if swap else pair for pair, swap in zip(pairs, swaps, strict=True)]


def both_signs(pairs: Sequence[Pair]) -> list[Example]:
    return [Example(pair, sign) for pair in pairs for sign in (1, -1)]
