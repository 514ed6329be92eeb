"""Questions as tokens, and where their answers begin to differ.

It works with any tokenizer of Hugging Face's kind, and knows nothing of models. What stands before the first
token in which the answers differ is forced; it is found on whole renderings, so that a merge of an answer's
first letter with what precedes it can't be missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from vsteer.prompts.template import with_gap
from vsteer.protocol import Prompt

Tokens = tuple[int, ...]


class AmbiguousAnswers(ValueError):
    """Answers whose tokens can't be told apart: one of them begins another."""


def gap(tokenizer: Any, question: str, system: str | None = None) -> str:
    """What belongs between header and answer: a space for Llama 2 and base models, nothing for ChatML."""
    return with_gap(tokenizer, question, "x", system)[:-1]


def decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The tokens as text, special tokens shown: what the model really sees."""
    text: str = tokenizer.decode(list(tokens), skip_special_tokens=False)
    return text


def forced_start(tokenizer: Any, prompt: Prompt, end: int | None = None) -> str:
    """The text of the answer that stands behind the header, up to a token."""
    header = decoded(tokenizer, prompt.token_ids[: prompt.template_length])
    return decoded(tokenizer, prompt.token_ids[:end])[len(header) :]


def cut_letters(renderings: Sequence[Tokens]) -> tuple[int, tuple[Tokens, ...]]:
    """Where lettered answers begin to differ, and the tokens of each that are scored from there on.

    The first token is scored if it tells them all apart, as letters do; the bracket behind it adds nothing.
    Where it doesn't, as for (1) and (10), as many tokens are scored as are needed.
    """
    start = common_prefix(renderings)
    for length in range(1, max(map(len, renderings)) - start + 1):
        heads = tuple(tokens[start : start + length] for tokens in renderings)
        if len(set(heads)) == len(heads) and not _begins_another(heads):
            return start, heads
    raise AmbiguousAnswers


def cut_words(forced: Tokens, renderings: Sequence[Tokens]) -> tuple[int, tuple[Tokens, ...]]:
    """Where answers in words begin, and all their tokens from there on.

    What they have in common is scored too: a model that never says "I am" is not about to say "I am sad".
    """
    start = common_prefix([forced, *renderings])
    tails = tuple(tokens[start:] for tokens in renderings)
    if len(set(tails)) < len(tails) or _begins_another(tails):
        raise AmbiguousAnswers
    return start, tails


def common_prefix(sequences: Sequence[Tokens]) -> int:
    """How many tokens all of them begin with."""
    length = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def _begins_another(sequences: Sequence[Tokens]) -> bool:
    """Whether one is empty or the beginning of another: then its probability holds the other's too."""
    ordered = sorted(sequences)
    return any(not one for one in ordered) or any(
        later[: len(one)] == one for one, later in pairwise(ordered)
    )
