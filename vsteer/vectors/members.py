"""Contrast data as texts to read activations from: rendered, tokenised, with the position that is read.

A pair gives two members that share a prompt and differ in the answer; unpaired sets give one member a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from vsteer.datasets.items import Item, ItemSet, UnpairedSets
from vsteer.errors import DataError, UsageError
from vsteer.prompts.answers import forced_start
from vsteer.prompts.template import render_question, with_gap
from vsteer.protocol import Prompt

# -1 is the last token
Token = Literal["answer", "last"] | int


@dataclass(frozen=True)
class Member:
    item_id: str
    positive: bool
    letter: str  # its answer's; empty where the answer is in words, or there is none
    prompt: Prompt
    position: int  # whose activations are read


def parse_token(text: str) -> Token:
    """What a user writes for the token: answer, last, or a negative offset."""
    if text in ("answer", "last"):
        return "answer" if text == "answer" else "last"
    try:
        offset = int(text)
    except ValueError:
        offset = 0
    if offset >= 0:
        raise UsageError(
            f"unknown token {text!r}", "give answer, last, or an offset from the end such as -2 (-1 is last)"
        )
    return offset


def check_token(token: Token, data: ItemSet | UnpairedSets) -> None:
    """Refuse a token that the data doesn't have."""
    if token == "answer" and isinstance(data, UnpairedSets):
        raise UsageError(
            "unpaired instructions have no answers, and so no answer token",
            "take the token last, or an offset such as -2",
        )


def member_count(data: ItemSet | UnpairedSets) -> int:
    if isinstance(data, ItemSet):
        return 2 * len(data.items)
    return len(data.positive.prompts) + len(data.negative.prompts)


def members(
    tokenizer: Any, data: ItemSet | UnpairedSets, token: Token, system: str | None = None
) -> Iterator[Member]:
    """Every member, in the file's order: a pair's positive member first, and the positive set first."""
    if isinstance(data, ItemSet):
        for item in data.items:
            yield from pair_members(tokenizer, data.source.path, item, token, system)
        return
    check_token(token, data)
    for prompts, positive in ((data.positive, True), (data.negative, False)):
        for prompt in prompts.prompts:
            rendered = render_question(tokenizer, prompt.text, system)
            where = f"{prompts.source.path}, line {prompt.line}"
            position = _from_end(rendered, token, where)
            yield Member(prompt.item_id, positive, "", rendered, position)


def letter_start(
    tokenizer: Any, data: ItemSet | UnpairedSets, token: Token, system: str | None = None
) -> str | None:
    """What stands between header and letter where letters are read, such as ` (`; None where none are."""
    if token != "answer" or not isinstance(data, ItemSet) or not data.items[0].lettered:
        return None
    first = next(members(tokenizer, data, token, system))
    return forced_start(tokenizer, first.prompt, first.position)


def pair_members(
    tokenizer: Any, path: str, item: Item, token: Token, system: str | None = None
) -> tuple[Member, Member]:
    where = f"{path}, line {item.line}"
    rendered = tuple(
        render_question(tokenizer, item.question, system, with_gap(tokenizer, item.question, answer, system))
        for answer in (item.positive, item.negative)
    )
    if token == "answer":
        positions = [_answer_position(rendered[0], rendered[1], where)] * 2
    else:
        positions = [_from_end(prompt, token, where) for prompt in rendered]
    alike = [prompt.token_ids[: at + 1] for prompt, at in zip(rendered, positions, strict=True)]
    if alike[0] == alike[1]:
        raise DataError(
            f"{where}: at the token {token} the two members have not begun to differ",
            "there is nothing to read there; take the token last, or an offset nearer to the end",
        )
    assert item.not_matching is not None
    letters = [item.choices[index].label for index in (item.matching, item.not_matching)]
    positive, negative = (
        Member(item.item_id, positive, letter, prompt, position)
        for positive, letter, prompt, position in zip(
            (True, False), letters, rendered, positions, strict=True
        )
    )
    return positive, negative


def _answer_position(positive: Prompt, negative: Prompt, where: str) -> int:
    """The one token in which the members differ."""
    pairs = list(zip(positive.token_ids, negative.token_ids, strict=False))
    differing = [position for position, (a, b) in enumerate(pairs) if a != b]
    if len(positive.token_ids) != len(negative.token_ids) or len(differing) != 1:
        raise DataError(
            f"{where}: the two answers do not differ in one token "
            f"(first at token {differing[0] if differing else len(pairs)})",
            "the token answer is for letters and single words; take the token last for longer answers",
        )
    return differing[0]


def _from_end(prompt: Prompt, token: Token, where: str) -> int:
    offset = token if isinstance(token, int) else -1
    position = len(prompt.token_ids) + offset
    if position < 0:
        raise DataError(
            f"{where}: the text has {len(prompt.token_ids)} tokens, so none at {offset}",
            "give an offset nearer to the end",
        )
    return position
