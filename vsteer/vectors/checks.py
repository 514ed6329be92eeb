"""What every vector must be, wherever it comes from: floats, finite, one width, layers counted from 0."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsteer.errors import VectorError
from vsteer.protocol import Direction
from vsteer.vectors.vector import SteeringVector

# Of a file that holds one vector: 200 layers of 32,768 values in float64.
MAX_BYTES = 2**26
MAX_LAYER, MAX_NAME = 9_999, 200


def as_direction(values: NDArray[Any], layer: int, source: str) -> Direction:
    """One layer's values as float32, or an error that says what is wrong with them."""
    if not np.issubdtype(values.dtype, np.floating):
        raise VectorError(
            f"{source}: layer {layer} holds {values.dtype} values",
            "a direction is made of floating-point values",
        )
    if values.ndim != 1 or not values.size:
        shape = " x ".join(map(str, values.shape[:8])) or "a single number"
        raise VectorError(
            f"{source}: layer {layer} has the shape {shape}", "a direction is one row of values"
        )
    # A float64 beyond float32's range becomes infinite, and is caught as such.
    with np.errstate(over="ignore"):
        direction = np.array(values, np.float32)
    if bad := int((~np.isfinite(direction)).sum()):
        raise VectorError(
            f"{source}: layer {layer} has {bad} value(s) that are not finite (NaN, infinite, or too large)",
            "look at how it was made; a vector must be finite at every layer",
        )
    return direction


def check_directions(directions: Mapping[int, Direction], source: str) -> None:
    """There is at least one layer, none is negative, and all have one width."""
    if not directions:
        raise VectorError(f"{source} has no layers", "a vector needs a direction for at least one layer")
    first = min(directions)
    if first < 0:
        raise VectorError(f"{source} has a layer {first}", "layers are counted from 0")
    if (last := max(directions)) > MAX_LAYER:
        raise VectorError(f"{source} has a layer {last}", f"layers are counted from 0 to at most {MAX_LAYER}")
    width = len(directions[first])
    for layer, direction in directions.items():
        if len(direction) != width:
            raise VectorError(
                f"{source}: layer {layer} is {len(direction)} wide, but layer {first} is {width}",
                "all layers of one vector come from one model and have its width",
            )


def check_vector(vector: SteeringVector, source: str) -> None:
    """The whole vector, before it is written and after it was read."""
    if len(vector.name) > MAX_NAME:
        raise VectorError(
            f"{source[:MAX_NAME]}: its name has {len(vector.name):,} characters",
            f"give it a name of at most {MAX_NAME}",
        )
    for layer, direction in vector.directions.items():
        as_direction(direction, layer, source)
    check_directions(vector.directions, source)
    for layer, norm in vector.stream_norms.items():
        if not 0 < norm < float("inf"):
            raise VectorError(
                f"{source}: the stream norm of layer {layer} is {norm}",
                "it is the mean length of the stream there, a positive number",
            )
    for layer, deviation in vector.deviations.items():
        if not 0 <= deviation < float("inf"):
            raise VectorError(
                f"{source}: the deviation of layer {layer} is {deviation}",
                "it is the stream's standard deviation along the direction, a number from 0",
            )


def same_width(vector: SteeringVector, other: SteeringVector) -> None:
    if vector.hidden_size != other.hidden_size:
        raise VectorError(
            f"{vector.name!r} is {vector.hidden_size} wide and {other.name!r} is {other.hidden_size}",
            "vectors of different models can't be combined",
        )


def missing_layers(vector: SteeringVector, other: SteeringVector) -> None:
    """Every layer of `vector` is in `other` too."""
    if missing := sorted(set(vector.layers) - set(other.layers)):
        raise VectorError(
            f"{other.name!r} has no direction for layer {missing[0]}, which {vector.name!r} has",
            f"it lacks {len(missing)} of {len(vector.layers)} layers; use vectors of the same layers",
        )
