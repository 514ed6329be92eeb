"""The axes of a grid as they are written, and what they stand for: layers, multipliers, positions, norms;
and how many engines are to run them.

A parser takes the plain value and raises what pydantic reports with the value's place; `resolve` turns a
choice of layers into the layers of a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic_core import PydanticCustomError

from vsteer.protocol import OPEN_END, POSITION_WORDS, Positions
from vsteer.validation import did_you_mean, many, shortened, shown, wrong

T = TypeVar("T")
Group = tuple[int, ...]  # the layers of one steering; mostly one

MOST_VALUES, MOST_NORMS = 10_000, 1_000
_LAYER_FORMS = (
    "write all, [9, 10], {from: 8, to: 24, step: 2}, {depth: [0.2, 0.6]}, [[10, 14]] for both at once, or "
    "{together: {from: 8, to: 24}}"
)
_MULTIPLIER_FORMS = (
    "write numbers such as [-1, 1], {from: -2, to: 2, step: 0.5}, or {kl: [0.05, 0.2]} for doses"
)
_DOSE_FORMS = "write {kl: [0.05, 0.2]}, with signs: [1] for one sign, and text: FILE for texts of your own"
_POSITION_FORMS = f"known: {', '.join(POSITION_WORDS)}, or a list with a pair [[start, end]]"
_NORM_FORMS = "write raw, unit, caa, deviation, {residual: 0.1}, or a list of them"
_REPLICA_FORMS = "write a number, or {min: 1, max: 64} for as many as there is room for"


# --- layers


@dataclass(frozen=True)
class Layers:
    """A choice of layers. `written` is how the grid has it, for the manifest."""

    groups: tuple[Group, ...] | None  # None: every layer within `depth`
    depth: tuple[float, float]
    written: Any
    together: bool = False  # whether the layers within `depth` are one group

    @property
    def all_together(self) -> bool:
        return self.together and self.depth == (0.0, 1.0)

    def resolve(self, layers: int | None) -> tuple[Group, ...]:
        """The groups on a model of so many layers. A ValueError says what is wrong with them."""
        if self.groups is None:
            if layers is None:
                raise ValueError("the number of layers is not known")
            low, high = self.depth
            # A little slack lets 0.4 of 30 layers take layer 11, whose depth is 12/30.
            chosen = [n for n in range(layers) if low - 1e-9 <= (n + 1) / layers <= high + 1e-9]
            if not chosen:
                raise ValueError(f"no layer of {layers} has a depth from {low:g} to {high:g}")
            return (tuple(chosen),) if self.together else tuple((n,) for n in chosen)
        last = max(max(group) for group in self.groups)
        if layers is not None and last >= layers:
            raise ValueError(f"layer {last} does not exist: the model has layers 0 to {layers - 1}")
        return self.groups


def parse_layers(value: Any) -> Layers:
    if value == "all":
        return Layers(None, (0.0, 1.0), value)
    if isinstance(value, dict) and set(value) == {"depth"}:
        return Layers(None, _depth(value["depth"]), value)
    if isinstance(value, dict) and set(value) == {"together"}:
        return _together(value)
    if isinstance(value, dict):
        return Layers(tuple((n,) for n in _layer_range(value)), (0.0, 1.0), value)
    return Layers(many(_group)(value), (0.0, 1.0), value)


def _together(value: dict[str, Any]) -> Layers:
    """All of what `together` names as one group."""
    each = _at("together", parse_layers, value["together"])
    if each.groups is None:
        return Layers(None, each.depth, value, together=True)
    layers = tuple(sorted({n for group in each.groups for n in group}))
    return Layers((layers,), each.depth, value)


def _group(value: Any) -> Group:
    if isinstance(value, dict) and set(value) == {"together"}:
        groups = _together(value).groups
        if groups is None:
            message = f"expected a range of layers together, found {shown(value['together'])}"
            raise wrong(message, "in a list such as {together: {from: 8, to: 24}}", "together")
        return groups[0]
    if not isinstance(value, list):
        return (_layer(value),)
    group = tuple(_layer(one) for one in value)
    if not group or len(set(group)) < len(group):
        raise wrong(f"expected different layers to steer at once, found {shown(value)}", _LAYER_FORMS)
    return tuple(sorted(group))


def _layer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST_VALUES:
        raise wrong(f"expected the number of a layer, found {shown(value)}", _LAYER_FORMS)
    return value


def _layer_range(value: dict[str, Any]) -> range:
    _check_range_keys(value, _LAYER_FORMS)
    start, end, step = _layer(value["from"]), _layer(value["to"]), _layer(value.get("step", 1))
    if start > end or step == 0:
        raise wrong(f"no layer lies in {shown(value)}", "from is at most to, and both are included")
    return range(start, end + 1, step)


def _depth(value: Any) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise wrong(f"expected two depths, found {shown(value)}", "such as {depth: [0.2, 0.6]}", "depth")
    low, high = (parse_number(depth, "such as {depth: [0.2, 0.6]}") for depth in value)
    if not 0 <= low <= high <= 1:
        hint = "the depth of layer L of n is (L + 1) / n, so from 0 to 1"
        raise wrong(f"expected depths from 0 to 1, the lower first, found {shown(value)}", hint, "depth")
    return low, high


# --- multipliers


@dataclass(frozen=True)
class Dose:
    """In a multiplier's place: that one with which the mean KL divergence on neutral text has this size."""

    kl: float  # of the next token's distribution from the unsteered one, in nats
    sign: int  # the multiplier's
    text: str = ""  # a file; empty: the built-in text


# What a block's `multipliers` list.
Level = float | Dose
LEAST_KL, MOST_KL = 1e-6, 100.0
_DOSE_KEYS = {"kl", "signs", "text"}


def parse_multipliers(value: Any) -> tuple[Level, ...]:
    if isinstance(value, dict) and not value.keys() & _DOSE_KEYS:
        return _multiplier_range(value)
    if isinstance(value, dict):
        return _doses(value)
    return tuple(dict.fromkeys(one for some in many(_levels)(value) for one in some))


def written_multipliers(levels: tuple[Level, ...]) -> list[Any]:
    """In plain values, which `parse_multipliers` reads again."""
    return [
        {"kl": one.kl, "signs": [one.sign]} | ({"text": one.text} if one.text else {})
        if isinstance(one, Dose)
        else one
        for one in levels
    ]


def _levels(value: Any) -> tuple[Level, ...]:
    if isinstance(value, dict) and value.keys() & _DOSE_KEYS:
        return _doses(value)
    return (parse_multiplier(value),)


def _doses(value: dict[str, Any]) -> tuple[Dose, ...]:
    """Both signs by default: which of them is the stronger is mostly what is asked."""
    if not {"kl"} <= value.keys() <= _DOSE_KEYS:
        found = shortened(", ".join(map(str, value)))
        raise wrong(f"expected kl, signs and text, found {found}", _DOSE_FORMS)
    signs = _at("signs", many(_sign), value.get("signs", [-1, 1]))
    kls = _at("kl", many(_kl), value["kl"])
    text = value.get("text", "")
    if "text" in value and (not isinstance(text, str) or not text.strip()):
        raise wrong(f"expected a file of texts, found {shown(text)}", "one text a line", "text")
    return tuple(Dose(kl, sign, text) for kl in kls for sign in signs)


def _at(key: str, parse: Callable[[Any], T], value: Any) -> T:
    """Put the key into the place of whatever is wrong with its value."""
    try:
        return parse(value)
    except PydanticCustomError as error:
        context = error.context or {}
        raise wrong(context["message"], context["hint"], key, *context["at"]) from None


def _kl(value: Any) -> float:
    number = parse_number(value, "such as {kl: [0.05, 0.2]}")
    if not LEAST_KL <= number <= MOST_KL:
        hint = f"from {LEAST_KL:g} to {MOST_KL:g} nats; 0 is the unsteered model, which each evaluation has"
        raise wrong(f"{shown(value)} is no KL divergence that can be found", hint)
    return number


def _sign(value: Any) -> int:
    if isinstance(value, bool) or value not in (-1, 1):
        raise wrong(f"expected a sign, found {shown(value)}", "signs: [1], [-1], or both: [-1, 1]")
    return int(value)


def parse_multiplier(value: Any) -> float:
    number = parse_number(value, _MULTIPLIER_FORMS)
    # The device multiplies in float32, where such a number would become infinite or 0.
    if number and not float(np.finfo(np.float32).tiny) <= abs(number) <= float(np.finfo(np.float32).max):
        raise wrong(f"the multiplier {number} is no float32 number", "papers use -2 to 2")
    # Numbers that are one float32 become its shortest decimal, and so one multiplier; -0.0 becomes 0.
    return float(str(np.float32(number))) + 0.0


def _multiplier_range(value: dict[str, Any]) -> tuple[float, ...]:
    _check_range_keys(value, _MULTIPLIER_FORMS)
    start, end = (parse_multiplier(value[key]) for key in ("from", "to"))
    step = parse_multiplier(value.get("step", 1))
    if step <= 0 or start > end or (end - start) / step > MOST_VALUES:
        raise wrong(f"expected from, to and a step between them, found {shown(value)}", _MULTIPLIER_FORMS)
    count = math.floor((end - start) / step + 1e-9) + 1
    # 0.1 has no exact binary form: rounding makes the sum of three of them 0.3, as the user would write it.
    return tuple(dict.fromkeys(parse_multiplier(round(start + n * step, 10)) for n in range(count)))


# --- positions and norms


def parse_positions(value: Any) -> Positions:
    if isinstance(value, list):
        if len(value) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) for n in value):
            raise wrong(f"expected a pair [start, end), found {shown(value)}", _POSITION_FORMS)
        start, end = value
        if not 0 <= start < end <= OPEN_END:
            raise wrong(f"no token lies in [{start}, {end})", "0 <= start < end, and end is not included")
        return (start, end)
    if not isinstance(value, str) or value not in POSITION_WORDS:
        hint = did_you_mean(value, list(POSITION_WORDS), _POSITION_FORMS)
        raise wrong(f"expected positions, found {shown(value)}", hint)
    return value


def parse_norms(value: Any) -> tuple[str, ...]:
    if isinstance(value, list) and len(value) > MOST_NORMS:
        raise wrong(f"{len(value):,} norms, and at most {MOST_NORMS:,} are taken", _NORM_FORMS)
    return many(parse_norm)(value)


def parse_norm(value: Any) -> str:
    """The norm as results name it: raw, unit, caa, deviation, residual:0.1."""
    if isinstance(value, dict) and set(value) == {"residual"}:
        fraction = parse_number(value["residual"], "such as {residual: 0.1}")
        if not 0 < fraction <= 1e6:
            raise wrong(f"expected a positive fraction, found {shown(value['residual'])}", _NORM_FORMS)
        return f"residual:{fraction!r}"
    if value not in ("raw", "unit", "caa", "deviation"):
        hint = did_you_mean(value, ["raw", "unit", "caa", "deviation", "residual"], _NORM_FORMS)
        raise wrong(f"expected a norm, found {shown(value)}", hint)
    return str(value)


# --- engines

MOST_REPLICAS = 10_000


class Replicas(NamedTuple):
    """How many engines there must be room for when a run starts, and how many there may come to be."""

    least: int
    most: int

    @property
    def written(self) -> int | dict[str, int]:
        """As a grid has it."""
        return self.most if self.least == self.most else {"min": self.least, "max": self.most}


def parse_replicas(value: Any) -> Replicas:
    if isinstance(value, Replicas):
        return value
    if not isinstance(value, dict):
        return Replicas(_replicas(value, 1), _replicas(value, 1))
    if not {"max"} <= set(value) <= {"min", "max"}:
        found = shortened(", ".join(map(str, value))) or "nothing"
        raise wrong(f"expected min and max, found {found}", _REPLICA_FORMS)
    least, most = _replicas(value.get("min", 1), 0, "min"), _replicas(value["max"], 1, "max")
    if least > most:
        raise wrong(f"min is above max in {shown(value)}", _REPLICA_FORMS)
    return Replicas(least, most)


def _replicas(value: Any, least: int, *at: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST_REPLICAS:
        bounds = f"from {least} to {MOST_REPLICAS:,}"
        raise wrong(f"expected a whole number {bounds}, found {shown(value)}", _REPLICA_FORMS, *at)
    return value


def parse_number(value: Any, hint: str) -> float:
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        hint = "YAML wants a point before an exponent: 1.0e-3"
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        raise wrong(f"expected a number, found {shown(value)}", hint)
    if not math.isfinite(value):
        raise wrong(f"expected a number, found {shown(value)}", hint)
    return float(value)


def _check_range_keys(value: dict[str, Any], forms: str) -> None:
    if not {"from", "to"} <= set(value) <= {"from", "to", "step"}:
        found = shortened(", ".join(map(str, value))) or "nothing"
        raise wrong(f"expected from, to and step, found {found}", forms)
