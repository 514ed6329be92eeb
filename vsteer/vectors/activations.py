"""Activations on disk: [layer, member, hidden] in float32, so that memory does not grow with the members.

Everything that is made of them is a weighted sum over members, taken in float64 in one pass over a layer:
means, halves, shuffled labels and letters alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsteer.errors import DataError, SteeringFault

Float64 = NDArray[np.float64]
Bools = NDArray[np.bool_]
# How much of a layer is in memory at once, in bytes of float64.
CHUNK_BYTES = 16 * 2**20


class Activations:
    """The file is gone once this is closed. Members may be put in any order, each once."""

    def __init__(self, layers: int, members: int, hidden_size: int) -> None:
        self.shape = (layers, members, hidden_size)
        size = 4 * layers * members * hidden_size
        # the file has no name, so that it goes when the process ends, however that ends
        self._file = tempfile.TemporaryFile(prefix="vsteer-activations-")  # noqa: SIM115
        try:
            # the space is taken now, so that a full disk shows before the model runs
            _reserve(self._file.fileno(), size)
        except OSError as error:
            self._file.close()
            raise DataError(
                f"no room for {size / 2**30:.1f} GiB of activations in {tempfile.gettempdir()}: "
                f"{error.strerror}",
                "set TMPDIR to a folder with room, or extract from fewer pairs",
            ) from None
        self._array = np.memmap(self._file, np.float32, "r+", shape=self.shape)
        self._there = np.zeros(members, bool)

    def __enter__(self) -> Activations:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        del self._array
        self._file.close()

    def put(self, member: int, streams: NDArray[np.float32]) -> None:
        """A member's activations, [layer, hidden]."""
        if self._there[member]:
            raise SteeringFault(f"member {member} came twice")
        self._array[:, member] = streams
        self._there[member] = True

    def chunks(self, layer: int) -> Iterator[tuple[slice, Float64]]:
        """The members of a layer, a part at a time, in float64."""
        if not self._there.all():
            missing = int((~self._there).sum())
            raise SteeringFault(f"{missing} of {self.shape[1]} members have no activations")
        step = max(1, CHUNK_BYTES // (8 * self.shape[2]))
        for start in range(0, self.shape[1], step):
            part = slice(start, min(start + step, self.shape[1]))
            yield part, self._array[layer, part].astype(np.float64)

    def weighted(self, layer: int, weights: Float64) -> Float64:
        """`weights[k, member]` times the layer's activations: [k, hidden]."""
        total = np.zeros((len(weights), self.shape[2]))
        for part, values in self.chunks(layer):
            total += weights[:, part] @ values
        return total

    def projected(self, layer: int, directions: Float64) -> Float64:
        """Every member's activations on `directions[k, hidden]`: [member, k]."""
        return np.concatenate([values @ directions.T for _, values in self.chunks(layer)])

    def norms(self, layer: int) -> Float64:
        return np.concatenate([np.linalg.norm(values, axis=1) for _, values in self.chunks(layer)])


def _reserve(descriptor: int, size: int) -> None:
    import os

    # macOS lacks it, so that a full disk shows later there
    reserve: Any = getattr(os, "posix_fallocate", None)
    if reserve is not None:
        reserve(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
