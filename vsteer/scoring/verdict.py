"""A judge's answer read strictly: a number from 0 to 10 at its beginning, and a reason. Never a guess.

It reads `7`, `7.5`, `7/10`, `7 out of 10`, `Score: 7`, each followed by nothing or a reason; a bare number's
reason comes after a mark or "because" (`3 sentences are rude` is no verdict). Markup and a leading <think>
block don't count. Whatever leaves a doubt (`7-8`, `7 or 8`, `7,5`, `8/100`, 11, a second score that differs,
an answer cut off beside its number) is unreadable, and the row's note says so."""

from __future__ import annotations

import re
from dataclasses import dataclass

LOWEST, HIGHEST = 0.0, 10.0
# An answer that was cut off needs a reason of so many characters to show that its number was whole.
REASON_IF_CUT = 20
REASON_KEPT = 300


@dataclass(frozen=True)
class Verdict:
    score: float | None  # None: unreadable
    reason: str  # the judge's, or why it is unreadable


_THINKING = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_LABEL = r"(?:(?:final |overall |my )?(?:score|rating|verdict)\b\s*(?:is\b)?\s*[:=]?\s*)"
_OF_TEN = r"(?:\s*/\s*10\b|\s*out\s+of\s+(?:10|ten)\b)"
_NUMBER = re.compile(
    rf"\s*(?P<label>{_LABEL})?(?P<number>\d+(?:\.\d+)?)(?P<of>{_OF_TEN})?(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
_MARKED = re.compile(r"\s*(?:$|[.,;:|(\u2013\u2014-]|because\b)|[ \t]*\n", re.IGNORECASE)
# What follows makes the number another one, or one of several.
_DOUBTFUL = re.compile(
    r"\w|[%/]|[.,:]\d|\s*out\s+of\b|\s*of\s+\d|\s*\d|\s*(?:[-\u2010-\u2015~&+/,;]|\bto\b|\bor\b|\band\b)+\s*\d",
    re.IGNORECASE,
)
_ANOTHER = re.compile(r"\b(?:score|rating|verdict)\b\W{0,3}(?:is\W{0,3})?(\d+(?:\.\d+)?)", re.IGNORECASE)


def read_verdict(answer: str | None, cut_off: bool = False) -> Verdict:
    if not answer or not answer.strip():
        return Verdict(None, "the judge's answer is empty")
    plain = re.sub(r"[*_`#]", "", _THINKING.sub("", answer, count=1))
    found = _NUMBER.match(plain)
    if found is None:
        return _unreadable("no number at its beginning", answer)
    score, rest = float(found["number"]), found["rest"]
    bare = found["label"] is None and found["of"] is None
    if _DOUBTFUL.match(rest) or (bare and not _MARKED.match(rest)):
        return _unreadable("not one plain number", answer)
    reason = " ".join(rest.strip(" \t\n.,;:|-\u2013\u2014").split())
    if cut_off and len(reason) < REASON_IF_CUT:
        return _unreadable("cut off beside its number", answer)
    if not LOWEST <= score <= HIGHEST:
        return _unreadable("not from 0 to 10", answer)
    if any(float(other) != score for other in _ANOTHER.findall(rest)):
        return _unreadable("two scores", answer)
    return Verdict(score, reason[:REASON_KEPT])


def _unreadable(why: str, answer: str) -> Verdict:
    return Verdict(None, f"unreadable, {why}: {' '.join(answer.split())[:REASON_KEPT]}")
