"""What a data file holds once it is read: items with choices, prompts without, and sets of them.

An item is one question with its choices; a contrast pair is an item answered in two ways. Items and prompts
are named by the hash of their content, so the same question has the same name wherever it came from.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vsteer.datasets.choices import with_texts
from vsteer.datasets.records import Source


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer of an item: what the model says (`(A)`, `Yes`), and what that stands for."""

    answer: str
    text: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """One question, its choices, and which of them matches the behaviour (or is correct).

    `not_matching` is the one choice that the file sets against it, None where the file names none; an item
    with more than two choices has others besides (`others`).
    """

    item_id: str
    question: str
    choices: tuple[Choice, ...]
    matching: int
    not_matching: int | None
    line: int
    category: str = ""
    swapped_from: str = ""

    @property
    def positive(self) -> str:
        return self.choices[self.matching].answer

    @property
    def negative(self) -> str:
        if self.not_matching is None:
            raise ValueError(f"item {self.item_id} names no answer that doesn't match")
        return self.choices[self.not_matching].answer

    @property
    def others(self) -> tuple[int, ...]:
        """Every choice but the matching one."""
        return tuple(n for n in range(len(self.choices)) if n != self.matching)

    @property
    def lettered(self) -> bool:
        return all(choice.label for choice in self.choices)


@dataclass(frozen=True, slots=True)
class ItemSet:
    """The items of one file, all of them, in its order."""

    source: Source
    form: str
    items: tuple[Item, ...]
    ignored_fields: tuple[str, ...] = ()

    def unique(self) -> tuple[Item, ...]:
        """Each item once: the first, where the file repeats one."""
        return tuple({item.item_id: item for item in reversed(self.items)}.values())[::-1]

    @property
    def duplicates(self) -> int:
        return len(self.items) - len({item.item_id for item in self.items})

    @property
    def by_choices(self) -> Mapping[int, int]:
        """How many items have two choices, three, ..."""
        return dict(sorted(Counter(len(item.choices) for item in self.items).items()))

    @property
    def by_label(self) -> Mapping[str, int]:
        """How often each letter matches; the empty letter stands for answers in words."""
        return dict(sorted(Counter(item.choices[item.matching].label for item in self.items).items()))

    def describe(self) -> str:
        """One line: `903 items (668 with 2 choices, 173 with 3, ...), matching letter A 558, ...`."""
        counts = ", ".join(f"{n} with {k}{' choices' if k == 2 else ''}" for k, n in self.by_choices.items())
        letters = ", ".join(f"{label or 'none'} {n}" for label, n in self.by_label.items())
        notes = [f"{len(self.items)} items ({counts})", f"matching letter {letters}"]
        if self.duplicates:
            notes.append(f"{self.duplicates} repeated")
        if self.ignored_fields:
            notes.append(f"fields not used: {', '.join(self.ignored_fields)}")
        return "; ".join(notes)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A user's turn without answers: an open question or an instruction."""

    item_id: str
    text: str
    line: int
    category: str = ""


@dataclass(frozen=True, slots=True)
class PromptSet:
    source: Source
    prompts: tuple[Prompt, ...]

    @property
    def duplicates(self) -> int:
        return len(self.prompts) - len({prompt.item_id for prompt in self.prompts})


@dataclass(frozen=True, slots=True)
class UnpairedSets:
    """Two sets of prompts for a difference of means; sets from one file have the same source."""

    positive: PromptSet
    negative: PromptSet


def swapped(item: Item) -> Item | None:
    """The same item with its choices in the other order, linked to the original; None without letters.

    The letters stay in place and the texts move, so what matches is now called by another letter.
    See `choices.refers_to_choices` for the items whose wording does not survive this.
    """
    if not item.lettered:
        return None
    texts = [choice.text for choice in reversed(item.choices)]
    choices = tuple(replace(choice, text=text) for choice, text in zip(item.choices, texts, strict=True))
    last = len(choices) - 1
    matching = last - item.matching
    not_matching = None if item.not_matching is None else last - item.not_matching
    question = with_texts(item.question, texts)
    return replace(
        item,
        item_id=name_item(question, choices, matching, not_matching),
        question=question,
        choices=choices,
        matching=matching,
        not_matching=not_matching,
        swapped_from=item.item_id,
    )


def name_item(question: str, choices: Sequence[Choice], matching: int, not_matching: int | None) -> str:
    return content_hash([question, [choice.answer for choice in choices], matching, not_matching])


def content_hash(content: object) -> str:
    """16 hexadecimal digits: among a million items two share a name once in 37 million files."""
    canonical = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
