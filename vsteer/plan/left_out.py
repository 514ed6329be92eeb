"""What a plan leaves out of the product of its grid, or merges: how many configurations, and why.

A configuration of an evaluation is in the plan, or is counted here under one reason. Both together are every
combination that the grid writes, so that none is lost without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from vsteer.grid.axes import Layers
from vsteer.grid.problems import Loc
from vsteer.grid.spec import Grid

OTHER_VECTORS = "left out: the evaluation's `vectors` names others"
OTHER_POSITIONS = "left out: {setting} steers {positions} alone"
EXCLUDED = "left out: excluded {place}"
BESIDE_TEXTS = "left out: no control vectors beside texts"
NO_NORM = "merged: an ablation takes a direction of length 1, whatever its norm"
UNSTEERED = "merged: multiplier 0 is the unsteered baseline"
TWICE = "merged: the grid reaches it more than once"
SAME_SYSTEM = "merged: the system prompt is a control and stands here already"
SHARED = "merged: several evaluations ask in the same way and share it"


@dataclass(frozen=True)
class LeftOut:
    """Configurations of an evaluation that aren't in the plan, or are another one's; "" is all of them."""

    evaluation: str
    reason: str
    configurations: int


def counted(counts: Mapping[tuple[str, str], int]) -> tuple[LeftOut, ...]:
    """From numbers by evaluation and reason."""
    return tuple(LeftOut(name, reason, count) for (name, reason), count in counts.items() if count)


def described(left_out: Sequence[LeftOut]) -> Iterator[str]:
    """A line for each reason, such as `120 left out: caa_compat steers after_user_turn alone (refusal)`."""
    for reason in dict.fromkeys(one.reason for one in left_out):
        found = [one for one in left_out if one.reason == reason]
        first, *others = dict.fromkeys(one.evaluation for one in found)
        where = f"{first} and {len(others)} more" if others else first
        yield f"{sum(one.configurations for one in found):,} {reason}" + (f" ({where})" if where else "")


def notes_on_grid(grid: Grid) -> Iterator[str]:
    """What the grid writes and the plan has no use for: values written twice, vectors not used."""
    for loc, more in _repeated(grid, grid.written, ()):
        yield f"{grid.place(loc)}: {loc[-1]} repeats {more} of its values, and each counts once"
    used = {name for axis in grid.grid for name in axis.names}
    used |= {axis.when.vector for axis in grid.grid if axis.when}
    for name in grid.vectors:
        if name not in used:
            yield f"{grid.place(('vectors', name))}: no block of the grid steers with the vector {name!r}"


def _repeated(settings: BaseModel, written: Any, at: Loc) -> Iterator[tuple[Loc, int]]:
    """The lists below `at` that hold fewer values than were `written`, and how many fewer."""
    if not isinstance(written, dict):
        return
    for key, value in settings:
        given: Any = written.get(key)
        loc = (*at, key)
        held = value.groups if isinstance(value, Layers) else value
        if isinstance(held, dict) and isinstance(given, dict):
            parts = [(value, given.get(name), (*loc, name)) for name, value in held.items()]
        elif isinstance(held, tuple) and isinstance(given, list):
            parts = [(value, one, (*loc, n)) for n, (value, one) in enumerate(zip(held, given, strict=False))]
            if len(held) < len(given):
                yield loc, len(given) - len(held)
        else:
            parts = [(held, given, loc)]
        for value, one, place in parts:
            if isinstance(value, BaseModel):
                yield from _repeated(value, one, place)
