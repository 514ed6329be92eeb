"""The largest eigenvectors of a symmetric operator that is known only by what it does to a vector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vsteer.vectors.activations import Float64


def largest_eigenvectors(apply: Callable[[Float64], Float64], size: int, count: int) -> Float64:
    """`count` orthonormal eigenvectors, the largest eigenvalue's first: [count, size]. Always the same."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    operator = LinearOperator((size, size), matvec=lambda v: apply(np.ravel(v)), dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(size)
    _, vectors = eigsh(operator, k=count, v0=start)
    # eigsh gives them by increasing eigenvalue
    found: Float64 = vectors.T[::-1]
    return found
