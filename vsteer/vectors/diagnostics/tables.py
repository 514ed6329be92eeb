"""Is a direction worth sweeping? Tables beside the vector: a row is a layer, a point or a pair of layers.

<name>.layers.parquet   what each layer's direction is worth
<name>.pca.parquet      the members on the first two components of their layer, with class and letter
<name>.cosine.parquet   each layer's direction against every other's
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vsteer.errors import VectorError
from vsteer.files import new_file
from vsteer.store.files import write_parquet
from vsteer.vectors.activations import Float64
from vsteer.vectors.diagnostics.rounding import rounding
from vsteer.vectors.extract import Extraction
from vsteer.vectors.methods.eigenvectors import largest_eigenvectors
from vsteer.vectors.methods.mean_difference import mean_difference
from vsteer.vectors.vector import SteeringVector

HALVES = 20
TABLES = ("layers", "pca", "cosine")
Rows = list[dict[str, Any]]


def tables(extraction: Extraction, vector: SteeringVector) -> dict[str, Rows]:
    """All three, by the word in their files' names."""
    return {
        "layers": layer_table(extraction, vector),
        "pca": pca_table(extraction),
        "cosine": cosine_table(vector),
    }


def table_path(vector: Path, table: str) -> Path:
    return vector.with_suffix(f".{table}.parquet")


def write_tables(found: Mapping[str, Rows], vector: Path, overwrite: bool) -> None:
    """Beside the vector's file."""
    for table, rows in found.items():
        with new_file(table_path(vector, table), VectorError, overwrite) as temporary:
            write_parquet(temporary, pa.Table.from_pylist(rows))


def layer_table(extraction: Extraction, vector: SteeringVector) -> Rows:
    return [_layer_row(extraction, vector, layer) for layer in vector.layers]


def _layer_row(extraction: Extraction, vector: SteeringVector, layer: int) -> dict[str, Any]:
    direction = vector.directions[layer].astype(np.float64)
    norm, stream = float(np.linalg.norm(direction)), vector.stream_norms[layer]
    # the raw one's, since the vector's own length may have changed
    difference = float(np.linalg.norm(mean_difference(extraction.activations, extraction.positive, layer)))
    return {
        "layer": layer,
        "depth": (layer + 1) / extraction.layers,
        "norm": norm,
        "stream_norm": stream,
        "norm_over_stream": norm / stream,
        "pair_agreement": _pair_agreement(extraction, layer) if extraction.paired else None,
        "class_separation": _class_separation(extraction, layer),
        "split_half": _split_half(extraction, layer),
        "letter_share": _letter_share(extraction, layer, direction),
        "rounding": rounding(vector.origin.dtype, layer, stream, extraction.contrast, difference),
    }


def _pair_agreement(extraction: Extraction, layer: int) -> float:
    """The mean cosine between two different pairs' differences: 1 is all alike, 0 nothing in common.

    It comes from the sum of their unit vectors, whose square holds every pair of them and each with itself.
    """
    total = np.zeros(extraction.activations.shape[2])
    odd = np.zeros((0, extraction.activations.shape[2]))
    count = 0
    for _, values in extraction.activations.chunks(layer):
        # a chunk may end between a pair's members
        values = np.concatenate([odd, values])
        whole = len(values) // 2 * 2
        odd = values[whole:]
        difference = values[0:whole:2] - values[1:whole:2]
        length = np.linalg.norm(difference, axis=1, keepdims=True)
        moved = length[:, 0] > 0
        total += (difference[moved] / length[moved]).sum(axis=0)
        count += int(moved.sum())
    if count < 2:
        return float("nan")
    return float((total @ total - count) / (count * (count - 1)))


def _halves(extraction: Extraction, rng: np.random.Generator) -> Float64:
    """Two rows of weights: the contrast of one random half of the pairs, and of the other half."""
    positive = extraction.positive
    weights = np.zeros((2, len(positive)))
    if extraction.paired:
        half = np.repeat(rng.permutation(extraction.pairs) % 2, 2)
    else:
        half = np.zeros(len(positive), int)
        for of_class in (positive, ~positive):
            half[of_class] = rng.permutation(int(of_class.sum())) % 2
    for index in (0, 1):
        for of_class, sign in ((positive, 1), (~positive, -1)):
            chosen = of_class & (half == index)
            weights[index, chosen] = sign / max(1, chosen.sum())
    return weights


def _split_half(extraction: Extraction, layer: int) -> float:
    """The cosine between the vectors of two random halves, in the mean over many splits."""
    rng = np.random.default_rng(0)
    weights = np.concatenate([_halves(extraction, rng) for _ in range(HALVES)])
    vectors = _unit(extraction.activations.weighted(layer, weights))
    return float((vectors[0::2] * vectors[1::2]).sum(axis=1).mean())


def _class_separation(extraction: Extraction, layer: int) -> float:
    """How many standard deviations the classes lie apart on it, by members that it wasn't made from."""
    weights = _halves(extraction, np.random.default_rng(1))
    projected = extraction.activations.projected(
        layer, _unit(extraction.activations.weighted(layer, weights))
    )
    found = []
    for made_of in (0, 1):
        other = weights[1 - made_of] != 0
        classes = [
            projected[other & of_class, made_of] for of_class in (extraction.positive, ~extraction.positive)
        ]
        if min(map(len, classes)) < 2:
            return float("nan")
        spread = np.sqrt((classes[0].var(ddof=1) + classes[1].var(ddof=1)) / 2)
        found.append((classes[0].mean() - classes[1].mean()) / spread if spread else float("nan"))
    return float(np.mean(found))


def _letter_share(extraction: Extraction, layer: int, direction: Float64) -> float | None:
    """The share of the squared direction that lies where the answers' letters differ; None without letters.

    The letters' means span that space. Where every positive answer is called A it is nearly all of it.
    """
    letters = np.array([label.letter for label in extraction.labels])
    names = sorted(set(letters) - {""})
    if len(names) < 2 or (letters == "").any():
        return None
    weights = np.stack([(letters == name) / (letters == name).sum() - 1 / len(letters) for name in names])
    means = extraction.activations.weighted(layer, weights)
    left, size, basis = np.linalg.svd(means, full_matrices=False)
    del left
    basis = basis[size > 1e-9 * max(float(size.max()), 1e-30)]
    return float(((basis @ direction) ** 2).sum() / (direction @ direction))


def pca_table(extraction: Extraction) -> Rows:
    """Every member's coordinates on its layer's first two components, the positive class on the right."""
    rows: Rows = []
    count, hidden = extraction.activations.shape[1:]
    for layer in range(extraction.layers):
        mean = extraction.activations.weighted(layer, np.full((1, count), 1 / count))[0]

        def covariance(v: Float64, layer: int = layer, mean: Float64 = mean) -> Float64:
            projected = extraction.activations.projected(layer, v[None])[:, 0] - mean @ v
            back: Float64 = (
                extraction.activations.weighted(layer, projected[None])[0] - projected.sum() * mean
            )
            return back

        components = largest_eigenvectors(covariance, hidden, 2)
        places = extraction.activations.projected(layer, components) - components @ mean
        gap = places[extraction.positive].mean(axis=0) - places[~extraction.positive].mean(axis=0)
        places *= np.where(gap < 0, -1.0, 1.0)
        for label, (first, second) in zip(extraction.labels, places.tolist(), strict=True):
            rows.append(
                {
                    "layer": layer,
                    "item_id": label.item_id,
                    "positive": label.positive,
                    "letter": label.letter,
                    "pc1": first,
                    "pc2": second,
                }
            )
    return rows


def cosine_table(vector: SteeringVector) -> Rows:
    layers = vector.layers
    units = _unit(np.stack([vector.directions[layer] for layer in layers]).astype(np.float64))
    cosines = units @ units.T
    return [
        {"layer": a, "other_layer": b, "cosine": float(cosines[i, j])}
        for i, a in enumerate(layers)
        for j, b in enumerate(layers)
    ]


def _unit(vectors: Float64) -> Float64:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Float64 = vectors / np.where(lengths > 0, lengths, 1.0)
    return found
