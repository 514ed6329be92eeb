"""What is wrong with a grid, and where: in a file by its name and line, otherwise by the place in the grid.

Whoever finds a problem names its location, such as ("evaluations", 1, "tokens"). The grid's source turns that
into what a person can find.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vsteer.errors import UsageError
from vsteer.evaluations.kinds import KINDS
from vsteer.grid.values import Lines
from vsteer.grid.values import Loc as Loc
from vsteer.validation import did_you_mean, shortened, shown

# of problems at once, of characters of all of them and the hint, of the hint's, and of a file's name
_SHOWN, _LONGEST, _LONGEST_HINT, _LONGEST_PATH = 4, 590, 250, 200


class GridError(UsageError):
    """A grid that can't be planned: the message names the place in it."""


@dataclass(frozen=True)
class Source:
    """What a grid was made from: plain values, the folder of its data, and its file and lines, if any."""

    value: object
    folder: Path
    file: Path | None = None
    lines: Lines | None = None

    def place(self, loc: Sequence[str | int]) -> str:
        """`line 26`, or `evaluations[1].tokens`: the value at `loc`, or the closest that was really given."""
        there = tuple(self._given(loc))
        if self.lines is not None:
            return f"line {self.lines.of(there)}"
        words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in there)
        return shortened(words.removeprefix(".")) or "the grid"

    def at(self, loc: Sequence[str | int]) -> str:
        """`on line 26`, or `at evaluations[1].tokens`, within a sentence."""
        return f"{'at' if self.file is None else 'on'} {self.place(loc)}"

    def error(self, loc: Sequence[str | int], message: str, hint: str) -> GridError:
        hint = shortened(hint, _LONGEST_HINT)
        message = f"{self._file()}{self.place(loc)}: {message}"
        return GridError(shortened(message, _LONGEST - len(hint)), hint)

    def explained(self, error: ValidationError) -> GridError:
        """What pydantic found, the first few in the file's order, with the first one's hint."""
        found = [(self._line(_loc(one)), one) for one in error.errors(include_url=False)]
        found.sort(key=lambda pair: pair[0])
        first, *others = (_explained(one) for _, one in found[:_SHOWN])
        lines = [first[1], *(f"{self.place(loc)}: {message}" for loc, message, _ in others)]
        more = f"and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return self.error(first[0], "\n  ".join(filter(None, [*lines, more])), first[2])

    def _file(self) -> str:
        if self.file is None:
            return ""
        path = str(self.file)
        return f"{path if len(path) <= _LONGEST_PATH else f'…{path[1 - _LONGEST_PATH :]}'}, "

    def _line(self, loc: Sequence[str | int]) -> int:
        return 0 if self.lines is None else self.lines.of(tuple(self._given(loc)))

    def _given(self, loc: Sequence[str | int]) -> Iterator[str | int]:
        """The parts of a location that lead to a value: a default was not given, a union's tag is no key."""
        value: Any = self.value
        for part in loc:
            keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
            if part in keys:
                value = value[part]
                yield part


def _loc(error: ErrorDetails) -> Loc:
    match error["type"]:
        case "grid":
            return (*error["loc"], *error["ctx"]["at"])
        case "union_tag_not_found" | "union_tag_invalid":
            return (*error["loc"], "kind")
    return error["loc"]


def _explained(error: ErrorDetails) -> tuple[Loc, str, str]:
    """Where, what, and what to do about it."""
    loc, context = _loc(error), error.get("ctx", {})
    name = next((str(part) for part in reversed(error["loc"]) if isinstance(part, str)), "grid")
    name = shortened(name)
    match error["type"]:
        case "grid":
            return loc, context["message"], context["hint"]
        case "missing":
            return loc, f"the setting {name!r} is missing", f"add {name}: ..."
        case "union_tag_not_found" | "union_tag_invalid":
            *kinds, last = KINDS
            hint = did_you_mean(context.get("tag", ""), list(KINDS), "add kind: choice")
            return loc, f"expected the kind {', '.join(kinds)} or {last}", hint
        case "model_type" | "model_attributes_type" | "dict_type":
            return loc, f"expected settings, found {shown(error['input'])}", "write key: value"
        case "tuple_type":
            return loc, f"expected a list, found {shown(error['input'])}", "write it as a list"
        case "too_short":
            return loc, f"expected at least one entry under {name!r}", "fill it in"
    message = error["msg"].removeprefix("Input ").replace("Input", "it")
    hint = f"see {name!r} in docs/grid.md"
    if error["type"] == "literal_error":
        words = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        hint = did_you_mean(error["input"], words, hint)
    return loc, f"{name} {message}, found {shown(error['input'])}", hint
