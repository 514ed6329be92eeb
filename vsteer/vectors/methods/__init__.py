"""The methods, from activations of contrast data to a direction: each is one function and its entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from vsteer.datasets.items import ItemSet, UnpairedSets
from vsteer.errors import UsageError
from vsteer.vectors.activations import Activations, Bools, Float64
from vsteer.vectors.methods.mean_difference import mean_difference
from vsteer.vectors.methods.pca import principal_difference

MethodName = Literal["mean_diff", "dim", "pca", "iti"]


@dataclass(frozen=True)
class Method:
    """`direction(activations, positive, layer)` is the raw direction of a layer, where `positive` says each
    member's class; in pairs the members alternate, the positive one first. A method without it reads heads'
    outputs and not the stream (`vsteer/vectors/heads.py`): its vector acts behind the attention, at all of
    its layers together."""

    direction: Callable[[Activations, Bools, int], Float64] | None
    paired: bool
    unshuffled: str = ""  # why vectors of shuffled labels are no control for it, if they aren't


METHODS: Mapping[MethodName, Method] = {
    "mean_diff": Method(mean_difference, paired=True),
    "dim": Method(mean_difference, paired=False),
    "pca": Method(principal_difference, paired=True, unshuffled="a principal component has no labels"),
    "iti": Method(None, paired=True, unshuffled="they would choose other heads, at other layers"),
}


def check_method(name: str, data: ItemSet | UnpairedSets) -> MethodName:
    """The method of this name, which must work on the data."""
    known = next((known for known in METHODS if known == name), None)
    if known is None:
        raise UsageError(f"unknown method {name!r}", f"known: {', '.join(METHODS)}")
    paired = isinstance(data, ItemSet)
    if METHODS[known].paired != paired:
        held = "pairs" if paired else "two unpaired sets"
        suited = ", ".join(name for name, method in METHODS.items() if method.paired == paired)
        raise UsageError(
            f"the data holds {held}, from which {known} makes no vector", f"the methods for {held}: {suited}"
        )
    return known
