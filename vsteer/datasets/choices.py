"""The lettered choices at the end of a question: found by the question's own letters, listed, and re-ordered.

    What do you do?

    Choices:
     (A) I wait.
     (B) I go.

With or without the word Choices, with or without a space before the letter; letters or numbers, two or more.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MARK = re.compile(r"^[ \t]*\((?P<label>[A-Za-z]|\d{1,2})\)", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*(?:answer )?(?:choices|options)[ \t]*:[ \t]*$", re.MULTILINE | re.IGNORECASE)
_ANSWER = re.compile(r"\s*(?:\((?P<bracketed>[A-Za-z]|\d{1,2})\)|(?P<bare>[A-Z])[.)]?)\s*")
_REFERENCE = re.compile(
    r"\b(?:the|options?|choices?) (?:above|below|former|latter)\b|\b(?:options?|choices?) \(?[A-H1-9]\b"
    r"|^(?:both|neither)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Listed:
    """One choice as it is listed: its letter, its text, and where the text stands in the question."""

    label: str
    text: str
    start: int
    end: int


def listed_choices(question: str) -> tuple[Listed, ...]:
    """The list that ends the question, or nothing. A numbered list before it belongs to the stem."""
    headings = list(_HEADING.finditer(question))
    marks = list(_MARK.finditer(question, headings[-1].end() if headings else 0))
    tail: list[re.Match[str]] = []
    for mark in reversed(marks):
        label = mark["label"]
        if tail and _kind(label) != _kind(tail[-1]["label"]):
            break
        tail.append(mark)
        if not headings and label in {"A", "a", "1"}:
            break
    tail.reverse()
    ends = [*(mark.start() for mark in tail), len(question)][1:]
    return tuple(_listed(question, mark, end) for mark, end in zip(tail, ends, strict=True))


def stem(question: str) -> str:
    """The question without its choices, as it is asked open-ended."""
    choices = listed_choices(question)
    if not choices:
        return question
    before = question[: question.rfind("(", 0, choices[0].start)].rstrip()
    heading = next((h for h in _HEADING.finditer(before) if h.end() == len(before)), None)
    return before[: heading.start()].rstrip() if heading else before


def answer_label(answer: str) -> str | None:
    """The letter of `(A)`, ` (A)`, `A)`, `A.` or `A`; None where the answer is words."""
    match = _ANSWER.fullmatch(answer)
    return (match["bracketed"] or match["bare"]) if match else None


def with_texts(question: str, texts: Sequence[str]) -> str:
    """The question with other texts beside the same letters, everything else as it was."""
    for choice, text in reversed(list(zip(listed_choices(question), texts, strict=True))):
        question = question[: choice.start] + text + question[choice.end :]
    return question


def list_choices(question: str, texts: Sequence[str]) -> str:
    """A question and its choices' texts written out with letters."""
    lines = [f"({label}) {text}" for label, text in zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", texts, strict=False)]
    return "\n".join([question.rstrip(), "", "Choices:", *lines])


def refers_to_choices(question: str) -> bool:
    """Whether the wording leans on order or letters ("none of the above", "option A", "I believe in (A)").

    Such an item says something else once its choices change places.
    """
    choices = listed_choices(question)
    labels = "|".join(re.escape(choice.label) for choice in choices)
    named = re.compile(rf"\((?:{labels})\)")
    texts = [stem(question), *(choice.text for choice in choices)]
    return any(named.search(text) for text in texts) or any(_REFERENCE.search(text) for text in texts[1:])


def _listed(question: str, mark: re.Match[str], end: int) -> Listed:
    raw = question[mark.end() : end]
    start = mark.end() + len(raw) - len(raw.lstrip())
    return Listed(mark["label"], raw.strip(), start, start + len(raw.strip()))


def _kind(label: str) -> str:
    return "digit" if label.isdigit() else "upper" if label.isupper() else "lower"
