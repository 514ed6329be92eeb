"""Plain scorers: what a text and its tokens show without a model.

A scorer's hash is made from its name, its version and its settings. Raise the version when a function comes
to score the same text differently: its scores then go to a file of their own, and the old ones stay what they
were."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from vsteer.identity import identify
from vsteer.scoring import refusal_phrases as phrases

HASH_DIGITS = 12

# By the number's name: the number, and a note on it where there is one.
Scores = Mapping[str, tuple[float | None, str | None]]


@dataclass(frozen=True)
class Scorer:
    name: str
    about: str
    version: int
    score: Callable[[str, Sequence[int]], Scores]
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs_tokens: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        return {"scorer": self.name, "version": self.version, **self.settings}

    @property
    def hash(self) -> str:
        return scorer_hash(self.identity)


def scorer_hash(identity: Mapping[str, Any]) -> str:
    return identify(dict(identity))[:HASH_DIGITS]


def refusal(text: str, tokens: Sequence[int]) -> Scores:
    """1 where the text refuses, otherwise 0; with the phrase that refuses."""
    phrase = phrases.refusal_phrase(text)
    return {"refusal": (float(phrase is not None), phrase)}


def repetition(text: str, tokens: Sequence[int]) -> Scores:
    """distinct_n: different runs of n words over all of them. repetition: the share of runs of four tokens
    that came before; in tokens, so that "!!!!!!!!" has it too. None where the text has no such run.
    """
    spoken = words(text)
    found: dict[str, tuple[float | None, str | None]] = {
        f"distinct_{n}": (distinct(spoken, n), None) for n in (1, 2, 3)
    }
    fresh = distinct(tokens, REPEATED)
    found["repetition"] = (None if fresh is None else 1 - fresh, None)
    return found


def length(text: str, tokens: Sequence[int]) -> Scores:
    return {
        "characters": (float(len(text)), None),
        "words": (float(len(words(text))), None),
        "tokens": (float(len(tokens)), None),
    }


def characters(text: str, tokens: Sequence[int]) -> Scores:
    """non_language: the share of characters that no language's running text has, spaces not counted."""
    odd = total = 0
    for letter, count in Counter(text).items():
        if not letter.isspace():
            total += count
            odd += 0 if in_language(letter) else count
    return {"non_language": (odd / total if total else None, None)}


REPEATED = 4
# Scripts that are written without spaces (Thai, Lao, Burmese, Khmer, kana, Han): each character is a word.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])"
)
_WORD = re.compile("\\w(?:[\\w'\u2019]*\\w)?")
# Punctuation of running text, and the signs that go with numbers; code's and markup's are not.
PUNCTUATION = frozenset(
    ".,;:!?'\"()-%&/+="
    "\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a\u2013\u2014\u2026\u00a1\u00bf\u00b0\u00b7"
    "\u3001\u3002\u300c\u300d\u300e\u300f\u300a\u300b\u3010\u3011\uff0c\uff01\uff1f\uff1a\uff1b\uff08\uff09\u30fb"
    "\u060c\u061b\u061f\u06d4\u0964\u0965\u05be\u05f3\u05f4"
    "\u200c\u200d"  # joiners, part of how Persian and Hindi are written
)


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case, with the apostrophes within them."""
    return _WORD.findall(_UNSPACED.sub(r" \1 ", text.lower()))


def distinct(units: Sequence[object], n: int) -> float | None:
    runs = list(zip(*(units[start:] for start in range(n)), strict=False))
    return len(set(runs)) / len(runs) if runs else None


@lru_cache(maxsize=65536)
def in_language(letter: str) -> bool:
    """Letters, marks and digits of any script, currencies, and the punctuation of running text."""
    return letter in PUNCTUATION or unicodedata.category(letter) in _LANGUAGE


_LANGUAGE = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd", "Nl", "No", "Sc"))

PLAIN = {
    scorer.name: scorer
    for scorer in (
        Scorer(
            "refusal",
            "does the text refuse, by phrases",
            1,
            refusal,
            {"head": phrases.HEAD, **phrases.PHRASES},
        ),
        Scorer(
            "repetition",
            "distinct words, and runs of tokens that came before",
            1,
            repetition,
            needs_tokens=True,
        ),
        Scorer("length", "characters, words, tokens", 1, length, needs_tokens=True),
        Scorer(
            "characters",
            "share of characters that no language's text has",
            1,
            characters,
            {"punctuation": "".join(sorted(PUNCTUATION)), "unicode": unicodedata.unidata_version},
        ),
    )
}
