"""The plain values that a grid is made of, wherever it comes from: their limits, and their lines.

A grid holds texts, numbers, lists and settings by name, a few levels deep. The limits are far beyond what a
grid needs, and keep what is checked, hashed and printed small.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np

from vsteer.validation import shown

MOST_VALUES = 100_000
MOST_DEPTH = 50
# Half a surrogate pair can't be hashed or printed, and a zero byte can't stand in a path.
_NO_TEXT = re.compile("[\0\ud800-\udfff]")

Loc = tuple[str | int, ...]


@dataclass(slots=True)
class Lines:
    """The line of a value in its file, and those of its parts by their keys."""

    line: int
    parts: dict[str | int, Lines] = field(default_factory=dict)
    count: int = 1  # how many values it comes to, with every alias written out

    def of(self, loc: Sequence[str | int]) -> int:
        found = self
        for part in loc:
            found = found.parts[part]
        return found.line


class OutOfBounds(ValueError):
    """A value that no grid can hold, its place, and what to do about it."""

    def __init__(self, loc: Loc, message: str, hint: str) -> None:
        super().__init__(message)
        self.loc, self.hint = loc, hint


def fault(value: object) -> tuple[str, str] | None:
    """What is wrong with a single value, and what to do about it."""
    if isinstance(value, str) and _NO_TEXT.search(value):
        return "expected Unicode text, found an escape that stands for no character", "replace it"
    # Whatever reads a grid again takes 64 bits, and Python prints no more than 4,300 digits.
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"expected a number of at most 64 bits, found {shown(value)}", "no setting needs such a number"
    if isinstance(value, float) and not math.isfinite(value):
        return f"expected a finite number, found {shown(value)}", "write a number, or leave the setting out"
    return None


def plain(value: Any) -> Any:
    """A value of Python's as YAML would give it. Raises OutOfBounds."""
    count = 0

    def copied(value: Any, loc: Loc) -> Any:
        nonlocal count
        count += 1
        if count > MOST_VALUES:
            raise OutOfBounds(loc, f"more than {MOST_VALUES:,} values", "a grid is smaller")
        if len(loc) > MOST_DEPTH:
            raise OutOfBounds(loc, "the values are nested too deeply", "a grid is a few levels deep")
        if isinstance(value, np.ndarray | np.generic):
            value = value.tolist()
        match value:
            case Mapping():
                for key in value:
                    if not isinstance(key, str):
                        message = f"expected the name of a setting, found {shown(key)}"
                        raise OutOfBounds(loc, message, "names are texts")
                return {key: copied(held, (*loc, key)) for key, held in value.items()}
            case list() | tuple() | range():
                return [copied(one, (*loc, n)) for n, one in enumerate(value)]
            case PurePath():
                value = str(value)
        if found := fault(value):
            raise OutOfBounds(loc, *found)
        return value

    return copied(value, ())
