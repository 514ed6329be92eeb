"""Sparse vectors as files, sparsity.parquet, and the grid that sweeps them all beside the whole vector."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vsteer.mechanism.analysis import OnProgress, stored_scores, vectors_of
from vsteer.mechanism.edge_tables import Row
from vsteer.mechanism.folder import Folder
from vsteer.mechanism.sparsify import BASELINES, kept_as_many, kept_by_attribution, sparse_vector
from vsteer.store.files import write_file
from vsteer.store.mechanism import write_table
from vsteer.vectors.derive import one_layer
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

HEAD = """\
# Does a steering keep its effect where most of its dimensions are gone? By `vsteer mechanism sparsify`.
"""
SPARSE, GRID = "sparse", "sparsity.yaml"


def write_sparse(
    folder: Folder, ratios: Sequence[float], asked: Mapping[str, Any], grid: Path, on_progress: OnProgress
) -> list[Row]:
    """By attribution at each ratio, and by baselines with as many dimensions; `asked` is the evaluation.

    `on_progress` is called once for each ratio.
    """
    settings = folder.settings
    vector = vectors_of(folder)[0]
    layer = settings.layer
    direction = vector.directions[layer].astype(np.float64)
    effects = stored_scores(folder).mean(0, "dimensions")
    made: list[tuple[SteeringVector, Row]] = []
    for ratio in ratios:
        on_progress()
        kept = kept_by_attribution(direction, effects, ratio)
        count = int(kept.sum())
        if not count:
            continue
        masks = {"attribution": kept} | {
            method: kept_as_many(method, direction, effects, count, settings.seed) for method in BASELINES
        }
        for method, mask in masks.items():
            name = f"{vector.name}-{method}-{ratio:g}"
            sparse = sparse_vector(vector, layer, mask, name, f"by {method} at {ratio:g}")
            found = sparse.directions[layer].astype(np.float64)
            row = {
                **settings.key,
                "sparse": name,
                "file": f"{SPARSE}/{name}.safetensors",
                "method": method,
                "ratio": ratio,
                "seed": settings.seed if method == "random" else None,
                "dimensions": count,
                "share": count / len(direction),
                "cosine": float(found @ direction / np.linalg.norm(found) / np.linalg.norm(direction)),
            }
            made.append((sparse, row))
    whole = one_layer(vector, layer, [layer])
    folder_of = folder.path / SPARSE
    folder_of.mkdir(exist_ok=True)
    save(whole, folder_of / f"{vector.name}.safetensors", overwrite=True)
    for sparse, row in made:
        save(sparse, folder.path / row["file"], overwrite=True)
    rows = [row for _, row in made]
    write_table(folder.path, "sparsity", rows)
    files = {vector.name: f"{SPARSE}/{vector.name}.safetensors"}
    files |= {row["sparse"]: row["file"] for row in rows}
    beside = {name: os.path.relpath(folder.path / file, grid.parent) for name, file in files.items()}
    write_file(grid, _grid(folder, grid.stem, beside, asked).encode())
    return rows


def _grid(folder: Folder, name: str, files: Mapping[str, str], asked: Mapping[str, Any]) -> str:
    settings = folder.settings
    model = {"id": settings.model, "dtype": settings.dtype}
    grid = {
        "version": 1,
        "name": name,
        "model": model | ({"revision": settings.revision} if settings.revision else {}),
        "vectors": {vector: {"file": file} for vector, file in files.items()},
        "grid": [
            {
                "vector": list(files),
                "layers": [settings.layer],
                "multipliers": [settings.multiplier],
                "positions": settings.positions,
            }
        ],
        "controls": {"random_vectors": 19},
        # a sparse vector's controls are the baselines, with as many dimensions
        "exclude": [{"vector": list(files)[1:], "control": "random"}],
        "evaluations": [dict(asked)],
    }
    return HEAD + yaml.safe_dump(grid, sort_keys=False, allow_unicode=True)
