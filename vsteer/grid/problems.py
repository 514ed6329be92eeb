"""What is wrong with a grid, and where: in a file by its name and line, otherwise by the place in the grid.

Whoever finds a problem names its location, such as ("evaluations", 1, "tokens"). The grid's source turns that
into what a person can find.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vsteer.errors import UsageError
from vsteer.evaluations.kinds import KINDS
from vsteer.validation import did_you_mean, shown

Loc = tuple[str | int, ...]
_SHOWN = 4


class GridError(UsageError):
    """A grid that can't be planned: the message names the place in it."""


@dataclass(frozen=True)
class Source:
    """What a grid was made from: plain values, the folder of its data, and its file and lines, if any."""

    value: object
    folder: Path
    file: Path | None = None
    lines: Mapping[Loc, int] = field(default_factory=dict)

    def place(self, loc: Sequence[str | int]) -> str:
        """`line 26`, or `evaluations[1].tokens`: the value at `loc`, or the closest that was really given."""
        there = tuple(self._given(loc))
        if self.file is not None:
            return f"line {self.lines[there]}"
        words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in there)
        return words.removeprefix(".") or "the grid"

    def at(self, loc: Sequence[str | int]) -> str:
        """`on line 26`, or `at evaluations[1].tokens`, within a sentence."""
        return f"{'at' if self.file is None else 'on'} {self.place(loc)}"

    def error(self, loc: Sequence[str | int], message: str, hint: str) -> GridError:
        file = "" if self.file is None else f"{self.file}, "
        return GridError(f"{file}{self.place(loc)}: {message}", hint)

    def explained(self, error: ValidationError) -> GridError:
        """What pydantic found, the first few in the file's order, with the first one's hint."""
        found = [_explained(one) for one in error.errors(include_url=False)]
        found.sort(key=lambda one: self.lines.get(tuple(self._given(one[0])), 0))
        loc, message, hint = found[0]
        others = [f"{self.place(loc)}: {message}" for loc, message, _ in found[1:_SHOWN]]
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        return self.error(loc, "\n  ".join([message, *others, *more]), hint)

    def _given(self, loc: Sequence[str | int]) -> Iterator[str | int]:
        """The parts of a location that lead to a value: a default was not given, a union's tag is no key."""
        value: Any = self.value
        for part in loc:
            keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
            if part in keys:
                value = value[part]
                yield part


def _explained(error: ErrorDetails) -> tuple[Loc, str, str]:
    """Where, what, and what to do about it."""
    loc, context = error["loc"], error.get("ctx", {})
    name = next((str(part) for part in reversed(loc) if isinstance(part, str)), "grid")
    match error["type"]:
        case "grid":
            return (*loc, *context["at"]), context["message"], context["hint"]
        case "missing":
            return loc, f"the setting {name!r} is missing", f"add {name}: ..."
        case "union_tag_not_found" | "union_tag_invalid":
            *kinds, last = KINDS
            hint = did_you_mean(str(context.get("tag", "")), list(KINDS), "add kind: choice")
            return (*loc, "kind"), f"expected the kind {', '.join(kinds)} or {last}", hint
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
        hint = did_you_mean(str(error["input"]), words, hint)
    return loc, f"{name} {message}, found {shown(error['input'])}", hint
