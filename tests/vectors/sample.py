"""Small vectors whose every number a person can check."""

from collections.abc import Mapping, Sequence

import numpy as np

from vsteer.vectors.vector import Origin, SteeringVector


def vector(
    rows: Mapping[int, Sequence[float]],
    name: str = "sample",
    stream_norms: Mapping[int, float] | None = None,
    origin: Origin | None = None,
    deviations: Mapping[int, float] | None = None,
) -> SteeringVector:
    directions = {layer: np.array(row, np.float32) for layer, row in rows.items()}
    return SteeringVector(name, directions, stream_norms or {}, origin or Origin(), deviations or {})


def awkward(layers: Sequence[int] = (0, 1, 2, 11), width: int = 7) -> SteeringVector:
    """Values that a careless format would change: negative zero, subnormals, the largest float32."""
    noise = np.random.default_rng(0)
    rows = {layer: noise.standard_normal(width).astype(np.float32) for layer in layers}
    for row in rows.values():
        row[:4] = np.array([-0.0, 1e-45, np.finfo(np.float32).max, -1e-38], np.float32)
    origin = Origin(
        model="some/model",
        revision="main",
        model_type="llama",
        model_layers=12,
        model_sha256="ab" * 32,
        data='pairs "ü".json',
        data_sha256="cd" * 32,
        method="mean_diff",
        token="-2",
        template="chat",
        system="Du bist höflich.\nSehr.",
        dtype="bfloat16",
        pairs=408,
        norm="residual:0.1",
        derived=("one thing", "then another"),
    )
    return SteeringVector(
        "höflich",
        rows,
        {layer: 10.1 + layer / 3 for layer in layers},
        origin,
        {layer: 0.1 + layer / 7 for layer in layers},
    )


def same_bits(one: SteeringVector, other: SteeringVector) -> bool:
    """All numbers alike to the last bit, in the same layers; -0.0 is not 0.0."""
    return one.layers == other.layers and all(
        other.directions[layer].dtype == np.float32
        and one.directions[layer].tobytes() == other.directions[layer].tobytes()
        for layer in one.layers
    )
