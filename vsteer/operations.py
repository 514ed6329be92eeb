"""What a request can do to the stream: one record an operation, without torch.

A new operation is a record here and its module in engine/worker/modules.py. The grid, the table, the graph,
the reference, the canary, parity and the reports read the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

# Where an operation can act: on the embedding, which layer 0 alone has; behind a layer's attention; behind
# the layer.
PLACES = ("embedding", "attention", "layer")


CanaryTerms = tuple[tuple[str, float | None], ...]


@dataclass(frozen=True)
class Operation:
    name: str
    # completes "what is done to the stream"
    does: str
    # names the steering in a heading, with {vector} and {norm}
    heading: str
    # Its class in the graph, as pkgutil.resolve_name takes it, with one direction of length 1 and one size
    # for each cell and place. None for what is summed and added behind a layer, multiplier times vector.
    module: str | None = None
    # What the stream x, one token a row, becomes with the direction r of length 1 and the size c, which is
    # the multiplier times the vector's length. The reference computes it in float64, and parity holds the
    # module to it.
    formula: Callable[[Any, Any, float], Any] | None = None
    # Two lists of terms, which must do the same where what is added is far longer than the stream: each term
    # an operation with its multiplier, in units of the canary's strength.
    canary: tuple[CanaryTerms, CanaryTerms] | None = None
    has_multiplier: bool = True
    # Whether a multiplier of 0 changes the stream too.
    acts_at_zero: bool = False
    # What is shown in a multiplier's place, and what is wrong without it.
    done: str = ""
    noun: str = ""
    # Where it acts: at its term's layer, or at every layer, where `layer` only says whose direction it is.
    places: tuple[str, ...] = ("layer",)
    every_layer: bool = False
    # What a grid writes in `operation` and in `where`, if that isn't the name and the layer.
    written: str = ""
    where: str = "layer"

    @property
    def needs_direction(self) -> bool:
        """Whether a zero vector is an error, and not simply added."""
        return self.formula not in (None, _added)


def _added(x: Any, r: Any, c: float) -> Any:
    return x + c * r


def _set(x: Any, r: Any, c: float) -> Any:
    return x + (c - x @ r)[:, None] * r


def _without(x: Any, r: Any, c: float) -> Any:
    return _set(x, r, 0.0)


_COMPONENT = "vsteer.engine.worker.modules:SetComponent"

OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("add", does="adds multiplier times the vector", heading="{vector} (norm {norm})"),
        Operation(
            "add_attention",
            does="does so behind a layer's attention, in front of its MLP (`where: attention`)",
            heading="{vector} (norm {norm}) behind the attention",
            module="vsteer.engine.worker.modules:AddBehindAttention",
            formula=_added,
            canary=((("add_attention", 1.0),), (("add", 1.0),)),
            noun="adding behind the attention",
            places=("attention",),
            written="add",
            where="attention",
        ),
        Operation(
            "ablate",
            does="takes the stream's component along the vector away: x - (x.r)r, r of length 1",
            heading="ablating {vector} at each layer",
            module=_COMPONENT,
            formula=_without,
            canary=((("add", 1.0), ("ablate", None)), (("ablate", None),)),
            has_multiplier=False,
            done="ablated",
            noun="ablation",
        ),
        Operation(
            "ablate_everywhere",
            does="does so at every layer, behind attention and MLP, and to the embedding, along the vector "
            "of `layer`",
            heading="ablating each layer's direction of {vector} everywhere",
            module=_COMPONENT,
            formula=_without,
            canary=((("add", 1.0), ("ablate_everywhere", None)), (("ablate_everywhere", None),)),
            has_multiplier=False,
            done="ablated",
            noun="ablation",
            places=PLACES,
            every_layer=True,
        ),
        Operation(
            "clamp",
            does="sets the stream's component along the vector to c, multiplier times the vector's length: "
            "x + (c - x.r)r, r of length 1",
            heading="{vector} (norm {norm}) clamped",
            module=_COMPONENT,
            formula=_set,
            canary=((("add", -1.0), ("clamp", 1.0)), (("add", 1.0),)),
            noun="clamping",
            acts_at_zero=True,
        ),
    )
}

DESCRIBED_OPERATIONS = "; ".join(f"{operation.name} {operation.does}" for operation in OPERATIONS.values())


def written_operation(operation: str, where: str) -> str | None:
    """The operation that a grid means by `operation` and `where`; None if there is no such."""
    named = {(one.written or one.name, one.where): one.name for one in OPERATIONS.values()}
    return named.get((operation, where))


def graph_modules(operations: Iterable[str]) -> tuple[str, ...]:
    """The modules that the graph needs for these operations, beside the add that it always has."""
    wanted = {OPERATIONS[name].module for name in operations}
    modules = dict.fromkeys(operation.module for operation in OPERATIONS.values())
    return tuple(module for module in modules if module is not None and module in wanted)
