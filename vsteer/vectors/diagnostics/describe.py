"""What the numbers of vectors show by themselves: lengths layer by layer, and how alike they are."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vsteer.errors import VectorError
from vsteer.files import reading_hint
from vsteer.protocol import Direction
from vsteer.vectors.checks import same_width
from vsteer.vectors.norms import length
from vsteer.vectors.vector import SteeringVector

Row = dict[str, int | float | str | bool | None]


def layer_rows(vector: SteeringVector) -> list[Row]:
    """One row for each layer. None is unknown: the depth without the model's size, a share of no length."""
    return [_layer_row(vector, layer) for layer in vector.layers]


def _layer_row(vector: SteeringVector, layer: int) -> Row:
    direction = vector.directions[layer]
    norm, stream, blocks = length(direction), vector.stream_norms.get(layer), vector.origin.model_layers
    largest = float(np.abs(direction).max())
    return {
        "layer": layer,
        "depth": (layer + 1) / blocks if blocks else None,
        "norm": norm,
        "norm_over_stream": norm / stream if stream else None,
        # a share of the squared length, since those of all components sum to 1
        "largest_component_share": (largest / norm) ** 2 if norm else None,
    }


def join_diagnostics(rows: Sequence[Row], path: Path) -> list[Row]:
    """The rows, with the further columns of the Parquet table at `path`."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise VectorError(
            f"{path} can't be read: {error}", reading_hint(error, "extract again, or remove it")
        ) from error
    names = table.column_names
    beside: dict[object, dict[str, object]] = (
        {row["layer"]: row for row in table.to_pylist()} if "layer" in names else {}
    )
    if len(beside) != table.num_rows:
        raise VectorError(f"{path} has not one row for each layer", "expected a column layer without repeats")
    joined = []
    for row in rows:
        stored = {name: _plain(beside.get(row["layer"], {}).get(name)) for name in names}
        ours, theirs = row["norm"], stored.get("norm")
        if (
            isinstance(ours, float)
            and isinstance(theirs, float)
            and not math.isclose(ours, theirs, rel_tol=1e-3)
        ):
            raise VectorError(
                f"{path} is of another vector: at layer {row['layer']} it has the norm {theirs:.6g}, "
                f"the vector has {ours:.6g}",
                "it may be left from an earlier vector of this name; extract again, or remove it",
            )
        known = {name: value for name, value in row.items() if value is not None}
        joined.append(row | stored | known)
    return joined


def cosine(one: Direction, other: Direction) -> float | None:
    """None where either is zero and points nowhere."""
    lengths = length(one) * length(other)
    return math.fsum((one.astype(np.float64) * other).tolist()) / lengths if lengths else None


def common_layers(vectors: Sequence[SteeringVector]) -> list[int]:
    for other in vectors[1:]:
        same_width(vectors[0], other)
    layers = sorted(set.intersection(*(set(vector.layers) for vector in vectors)))
    if not layers:
        raise VectorError("the vectors have no layer in common", "compare vectors of the same layers")
    return layers


def comparison(one: SteeringVector, other: SteeringVector, layers: Sequence[int]) -> list[Row]:
    """One row for each layer: the cosine, both lengths, and the second's over the first's."""
    rows: list[Row] = []
    for layer in layers:
        norm, other_norm = length(one.directions[layer]), length(other.directions[layer])
        rows.append(
            {
                "layer": layer,
                "cosine": cosine(one.directions[layer], other.directions[layer]),
                "norm": norm,
                "other_norm": other_norm,
                "norm_ratio": other_norm / norm if norm else None,
            }
        )
    return rows


def mean_cosines(
    vectors: Sequence[SteeringVector], layers: Sequence[int]
) -> Mapping[tuple[int, int], float | None]:
    """For each pair of vectors, by their places, the mean cosine over the layers where both aren't zero."""
    means: dict[tuple[int, int], float | None] = {}
    for i, j in itertools.combinations_with_replacement(range(len(vectors)), 2):
        cosines = [cosine(vectors[i].directions[layer], vectors[j].directions[layer]) for layer in layers]
        defined = [value for value in cosines if value is not None]
        means[i, j] = means[j, i] = math.fsum(defined) / len(defined) if defined else None
    return means


def _plain(value: object) -> int | float | str | bool | None:
    """A Parquet value as JSON and a table can show it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, int | float | str | bool) else None if value is None else str(value)
