"""numpy's `.npy` with one row a layer: layers x width, row L for layer L."""

from collections.abc import Callable
from io import BytesIO
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from vsteer.errors import VectorError
from vsteer.vectors.checks import as_direction
from vsteer.vectors.vector import Origin, SteeringVector

MAGIC = b"\x93NUMPY"
_version: Any = npy.read_magic  # it has no types
_HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether it is stored by column, and type. Whatever is wrong is an exception of some kind."""
    shape, by_column, dtype = _HEADERS[_version(file)](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never read")
    return shape, by_column, dtype


def read(path: Path, content: bytes) -> SteeringVector:
    source, file = str(path), BytesIO(content)
    try:
        shape, by_column, dtype = read_header(file)
        values = content[file.tell() :]
        if (size := prod(shape) * dtype.itemsize) != len(values):
            raise ValueError(f"its header says {size:,} bytes of values, and there are {len(values):,}")
        array = np.frombuffer(values, dtype).reshape(shape, order="F" if by_column else "C")
    except Exception as error:  # numpy evaluates the header as Python, which ends in errors of many kinds
        raise VectorError(
            f"{source} is not a whole .npy file: {str(error)[:200]}",
            "save it with numpy.save, an array of floating-point values",
        ) from error
    if array.ndim != 2:
        found = " x ".join(map(str, array.shape[:8])) or "a single number"
        raise VectorError(
            f"{source} has the shape {found}", "expected layers x width: row L is layer L's, counted from 0"
        )
    directions = {layer: as_direction(row, layer, source) for layer, row in enumerate(array)}
    return SteeringVector(path.stem, directions, origin=Origin(norm=""))
