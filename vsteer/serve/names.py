"""A steering spelled out as the name of a model, and back.

    base                                        unsteered
    base+refusal@13*1.5                         1.5 times the vector refusal, behind layer 13
    base+refusal@10..16:after_prompt            behind layers 10 to 16 at once, both included
    base+ablate(refusal@13)+joy@20*-0.5:[3,9)   an operation, two terms, the tokens 3 to 8

Terms act at once, on all tokens where no positions are given, as in a grid.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

from pydantic_core import PydanticCustomError

from vsteer.errors import UsageError
from vsteer.grid.axes import parse_multiplier, parse_positions
from vsteer.protocol import OPEN_END, POSITION_WORDS, Positions, Steering, Term
from vsteer.validation import did_you_mean, shown

T = TypeVar("T")
S = TypeVar("S")

BASE = "base"
LONGEST = 2_000
# The terms of one steering, a layer each; a name or an object is short and could mean millions.
MOST_TERMS = 1_000
FORMS = "write base, base+refusal@13*1.5, or base+refusal@10..16:after_prompt"
_TERM = re.compile(
    r"\+(?:(?P<operation>[a-z_]{1,40})(?P<open>\())?"
    r"(?P<vector>[A-Za-z0-9][\w.-]{0,99})@(?P<first>[0-9]{1,4})(?:\.\.(?P<last>[0-9]{1,4}))?"
    r"(?:\*(?P<multiplier>-?[0-9]{1,20}(?:\.[0-9]{1,20})?(?:e-?[0-9]{1,2})?))?(?(open)\))",
    re.ASCII,
)
_SPAN = re.compile(r"\[([0-9]{1,10}),([0-9]{1,10})\)", re.ASCII)


def parse_name(name: str) -> Steering:
    """The steering that a name spells out. A UsageError says where it is none."""
    if len(name) > LONGEST:
        raise UsageError(f"the name of a model has {len(name):,} characters", f"at most {LONGEST:,} are read")
    if not name.startswith(BASE):
        raise _unreadable(name, 0)
    at = len(BASE)
    terms: list[Term] = []
    while found := _TERM.match(name, at):
        terms += _terms(found)
        at = found.end()
        check_terms(len(terms))
    positions: Positions = "all"
    if terms and name[at : at + 1] == ":":
        positions = _positions(name[at + 1 :])
    elif at < len(name):
        raise _unreadable(name, at)
    return Steering(tuple(terms), positions)


def check_terms(count: int) -> None:
    if count > MOST_TERMS:
        raise UsageError(f"a steering of more than {MOST_TERMS:,} terms", "a layer of a vector is one term")


def spelled(steering: Steering) -> str:
    """The name that spells a steering out; terms that do the same at neighbouring layers are one range."""
    if not steering.terms:
        return BASE
    positions = steering.positions
    if isinstance(positions, tuple):
        where = f":[{positions[0]},{positions[1]})"
    else:
        where = "" if positions == "all" else f":{positions}"
    return f"{BASE}{''.join(_ranges(steering.terms))}{where}"


def _terms(found: re.Match[str]) -> Iterator[Term]:
    first = int(found["first"])
    last = first if found["last"] is None else int(found["last"])
    if first > last:
        raise UsageError(f"no layer lies in {first}..{last}", "the lower one comes first, both are included")
    multiplier = _checked(parse_multiplier, float(found["multiplier"] or 1))
    for layer in range(first, last + 1):
        yield Term(found["vector"], layer, multiplier, found["operation"] or "add")


def _positions(text: str) -> Positions:
    if span := _SPAN.fullmatch(text):
        return _checked(parse_positions, [min(int(one), OPEN_END) for one in span.groups()])
    if text not in POSITION_WORDS:
        hint = did_you_mean(text, POSITION_WORDS, f"known: {', '.join(POSITION_WORDS)}, or [start,end)")
        raise UsageError(f"no positions are called {shown(text)}", hint)
    return text


def _checked(parse: Callable[[T], S], value: T) -> S:
    """What a setting of a grid with this value means."""
    try:
        return parse(value)
    except PydanticCustomError as error:
        context = error.context or {}
        raise UsageError(context["message"], context["hint"]) from None


def _ranges(terms: tuple[Term, ...]) -> Iterator[str]:
    at = 0
    while at < len(terms):
        first = last = terms[at]
        at += 1
        while at < len(terms) and terms[at] == _above(last):
            last = terms[at]
            at += 1
        layers = f"{first.layer}" if first == last else f"{first.layer}..{last.layer}"
        times = "" if first.multiplier == 1 else f"*{_number(first.multiplier)}"
        what = f"{first.vector}@{layers}{times}"
        yield f"+{what}" if first.operation == "add" else f"+{first.operation}({what})"


def _above(term: Term) -> Term:
    return Term(term.vector, term.layer + 1, term.multiplier, term.operation)


def _number(value: float) -> str:
    """As short as it can be, without a plus, which begins a term."""
    return repr(value).removesuffix(".0").replace("e+", "e")


def _unreadable(name: str, at: int) -> UsageError:
    rest = shown(name[at:])
    return UsageError(f"the name of a model can't be read from {rest} on", FORMS)
