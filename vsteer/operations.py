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
    # Its class in the graph, as pkgutil.resolve_name takes it, with one direction of length 1 for each cell
    # and place. None for what is summed and added, multiplier times vector.
    module: str | None = None
    # What the stream x, one token a row, becomes with the direction r of length 1. The reference computes it
    # in float64, and parity holds the module to it.
    formula: Callable[[Any, Any], Any] | None = None
    # Two lists of terms, which must do the same where what is added is far longer than the stream: each term
    # an operation with its multiplier, in units of the canary's strength.
    canary: tuple[CanaryTerms, CanaryTerms] | None = None
    # What is shown in a multiplier's place, and what is wrong without it.
    done: str = ""
    noun: str = ""
    # Where it acts: at its term's layer, or at every layer, where `layer` only says whose direction it is.
    places: tuple[str, ...] = ("layer",)
    every_layer: bool = False

    @property
    def has_multiplier(self) -> bool:
        """Only what is added has one."""
        return self.module is None


def _without(x: Any, r: Any) -> Any:
    return x - (x @ r)[:, None] * r


_ABLATION = "vsteer.engine.worker.modules:Ablation"

OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("add", does="adds multiplier times the vector", heading="{vector} (norm {norm})"),
        Operation(
            "ablate",
            does="takes the stream's component along the vector away: x - (x.r)r, r of length 1",
            heading="ablating {vector} at each layer",
            module=_ABLATION,
            formula=_without,
            canary=((("add", 1.0), ("ablate", None)), (("ablate", None),)),
            done="ablated",
            noun="ablation",
        ),
        Operation(
            "ablate_everywhere",
            does="does so at every layer, behind attention and MLP, and to the embedding, along the vector "
            "of `layer`",
            heading="ablating each layer's direction of {vector} everywhere",
            module=_ABLATION,
            formula=_without,
            canary=((("add", 1.0), ("ablate_everywhere", None)), (("ablate_everywhere", None),)),
            done="ablated",
            noun="ablation",
            places=PLACES,
            every_layer=True,
        ),
    )
}

DESCRIBED_OPERATIONS = "; ".join(f"{operation.name} {operation.does}" for operation in OPERATIONS.values())


def graph_modules(operations: Iterable[str]) -> tuple[str, ...]:
    """The modules that the graph needs for these operations, beside the add that it always has."""
    wanted = {OPERATIONS[name].module for name in operations}
    modules = dict.fromkeys(operation.module for operation in OPERATIONS.values())
    return tuple(module for module in modules if module is not None and module in wanted)
