"""A steering vector as it is stored: one direction a layer, for one behaviour, after its norm was applied.

With it goes where it came from (`Origin`) and how long the stream is at each layer where that was measured,
so that sizes can be compared and norms changed without the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vsteer.errors import VectorError
from vsteer.operations import OPERATIONS
from vsteer.protocol import Direction


@dataclass(frozen=True)
class Origin:
    """How a vector was made, in values that a file's metadata can hold. What is empty is not known."""

    model: str = ""  # as the user named it
    revision: str = ""
    model_type: str = ""  # config.json's model_type, such as llama; what GGUF calls the model hint
    model_layers: int = 0  # how many decoder blocks the model has; 0: not known
    model_sha256: str = ""  # one hash of all the files that decide its numbers
    data: str = ""  # as the user named it: a built-in behaviour, or one or two files
    data_sha256: str = ""  # the file's; where there are two, both, joined by "+"
    method: str = ""  # mean_diff, dim, pca, or what derived it: random, shuffled, sum, ...
    token: str = ""  # answer, last, or an offset such as -2
    answer_start: str = ""  # what stands before the letter that was read, such as "(", where one was
    template: str = ""  # chat or plain
    system: str = ""
    dtype: str = ""
    pairs: int = 0  # how many pairs; for unpaired sets, the smaller one's size
    # raw, unit, caa, deviation, residual:0.1; or "derived": none of these any more, by what is listed below
    norm: str = "raw"
    derived: tuple[str, ...] = ()  # what was done afterwards, in order
    # attention: its directions are of the stream behind each layer's attention; layer: behind the layer
    where: str = ""


@dataclass(frozen=True)
class SteeringVector:
    name: str
    directions: Mapping[int, Direction]
    # layer -> mean norm of the stream at the extracted tokens; empty where it was never measured
    stream_norms: Mapping[int, float] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    # layer -> standard deviation along the direction of the stream at those tokens, where it was measured
    deviations: Mapping[int, float] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.directions))

    @property
    def hidden_size(self) -> int:
        return len(next(iter(self.directions.values())))

    def at(self, layer: int, multiplier: float = 1.0, operation: str = "add") -> VectorTerm:
        """The vector at one layer, for an engine to steer with; an ablation has no multiplier."""
        check_place(self.name, self.origin.where, operation)
        if layer not in self.directions:
            raise VectorError(
                f"the vector {self.name!r} has no direction at layer {layer}",
                f"it has the layers {', '.join(map(str, self.layers))}",
            )
        return VectorTerm(self, layer, multiplier, operation)


@dataclass(frozen=True)
class VectorTerm:
    """What is done with one layer's direction of a vector."""

    vector: SteeringVector
    layer: int
    multiplier: float
    operation: str


def check_place(name: str, where: str, operation: str) -> None:
    """Refuse an operation that does not act `where` a vector's directions are, if that is known."""
    if not where or operation not in OPERATIONS or where in OPERATIONS[operation].places:
        return
    if where == "attention":
        behind, hint = "a layer's attention", "add it there: where: attention, which is add_attention"
    else:
        behind, hint = (
            "a layer",
            "if it belongs behind the attention, write where: attention beside its file too",
        )
    raise VectorError(
        f"{name!r} is a direction of the stream behind {behind}, where {operation} does not act", hint
    )
