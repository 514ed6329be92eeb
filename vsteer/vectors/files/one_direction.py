"""One direction out of a file of many: a row or a column of a matrix, as a sparse autoencoder's decoder has.

Such a file may have gigabytes: its header is read, and the values of the one direction. A pickle never is.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from vsteer.errors import VectorError
from vsteer.files import open_regular, parse_json, reading_hint
from vsteer.models.identity import large_file_sha256
from vsteer.validation import did_you_mean, shortened, shown
from vsteer.vectors.checks import MAX_BYTES, as_direction
from vsteer.vectors.files import numpy_file
from vsteer.vectors.files.native import FLOATS, MAX_HEADER, as_values
from vsteer.vectors.vector import Origin, SteeringVector

_CHUNK = 2**24
_FAULTS = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, KeyError)
# Numbers that were learned hardly become smaller; what would swell so much is no decoder.
_MOST_COMPRESSED = 100
_AS_SAFETENSORS = "save its tensors with safetensors.torch.save_file, or as arrays with numpy.savez"
_WHOLE = "it may have been cut short; copy it again"


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file, by what the file's header says of it. `opened` gives its values as bytes."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors has it, such as F32
    opened: Callable[[], AbstractContextManager[IO[bytes]]]
    by_column: bool = False

    @property
    def square(self) -> bool:
        """Whether the model's width doesn't tell rows from columns."""
        return len(self.shape) == 2 and self.shape[0] == self.shape[1]

    def __str__(self) -> str:
        sizes = " x ".join(f"{size:,}" for size in self.shape[:8])
        return f"{shown(self.key)} ({sizes or 'a single number'})"

    def counted(self, axis: int | None, width: int | None) -> int:
        """The axis along which the directions are counted: 0 where they are rows. `width` is the model's."""
        if len(self.shape) == 1 and axis is None:
            return 0
        if len(self.shape) != 2:
            why = "it is one direction" if len(self.shape) == 1 else "it is neither a direction nor a matrix"
            hint = "leave axis out" if len(self.shape) == 1 else "name a matrix of directions, such as W_dec"
            raise VectorError(f"{self} has no axis along which directions are counted: {why}", hint)
        if width is None:
            fitting = [side for side in (0, 1) if self.shape[side] == 1] or [0, 1]
        else:
            fitting = [side for side in (0, 1) if self.shape[1 - side] == width]
        if not fitting:
            raise VectorError(
                f"neither side of {self} is the model's width, {width:,}",
                "the directions of another model have no meaning in this one",
            )
        if axis is None and len(fitting) == 2:
            raise VectorError(
                f"the directions of {self} may be its rows or its columns",
                "say which: axis 0 where index counts rows, axis 1 where it counts columns",
            )
        if axis is not None and axis not in fitting:
            wide = f"{self.shape[1 - axis]:,} wide" + (
                f", and the model's stream is {width:,}" if width else ""
            )
            raise VectorError(
                f"along axis {axis} the directions of {self} are {wide}",
                f"write axis {1 - axis}, or leave it out",
            )
        return fitting[0] if axis is None else axis

    def direction(self, axis: int, index: int | None) -> NDArray[Any]:
        """The values of one direction; `index` may be left out where there is one alone."""
        count = 1 if len(self.shape) == 1 else self.shape[axis]
        if index is None and count > 1:
            raise VectorError(f"{self} has {count:,} directions", f"choose one: index, from 0 to {count - 1}")
        if not 0 <= (index or 0) < count:
            last = f"they are counted from 0 to {count - 1}" if count > 1 else "leave index out"
            raise VectorError(f"{self} has no direction {index}", last)
        # A matrix that is stored by column is the other one stored by row.
        rows, columns = (1, self.shape[0]) if len(self.shape) == 1 else self.shape
        if self.by_column:
            rows, columns, axis = columns, rows, 1 - axis
        size = np.dtype(FLOATS[self.dtype]).itemsize
        if not 0 < columns * size <= MAX_BYTES:
            raise VectorError(f"{self} is no decoder's size", "name a matrix of directions, such as W_dec")
        try:
            with self.opened() as file:
                if axis == 0 or len(self.shape) == 1:
                    file.seek((index or 0) * columns * size, 1)
                    return as_values(_exactly(file, columns * size), self.dtype)
                step = max(1, _CHUNK // (columns * size))
                parts = []
                for start in range(0, rows, step):
                    block = _exactly(file, min(step, rows - start) * columns * size)
                    parts.append(as_values(block, self.dtype).reshape(-1, columns)[:, index or 0].copy())
                return np.concatenate(parts)
        except (OSError, *_FAULTS) as error:
            raise _unreadable(self.path, error) from error


def load_direction(
    path: Path,
    key: str,
    layer: int,
    *,
    index: int | None = None,
    axis: int | None = None,
    where: str = "layer",
    width: int | None = None,
    name: str | None = None,
    sha256: str = "",
    located: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> SteeringVector:
    """The direction as a vector of one layer. `width` is the model's, where it is known.

    Each setting is checked within `located(its name)`, so that the caller can say where an error comes from.
    """
    tensor = find_tensor(path, key, located)
    with located("axis"):
        counted = tensor.counted(axis, width)
    with located("index"):
        direction = as_direction(tensor.direction(counted, index), layer, f"{path}, {shown(key)}")
        if not direction.any():
            raise VectorError(
                f"direction {index or 0} of {tensor} is zero, and steers nothing", "choose another one"
            )
    described = f"{path.name}: {key}" + ("" if len(tensor.shape) == 1 else f", axis {counted}, {index or 0}")
    origin = Origin(method="file", data=described, data_sha256=sha256 or large_file_sha256(path), where=where)
    return SteeringVector(name or f"{path.stem}-{index or 0}", {layer: direction}, origin=origin)


def find_tensor(
    path: Path, key: str, located: Callable[[str], AbstractContextManager[object]] = nullcontext
) -> Tensor:
    """The tensor of this name in a safetensors file or an .npz archive."""
    with located("file"):
        found = _tensors(path)
    with located("key"):
        if key not in found:
            keys = shortened(", ".join(sorted(found)), 150)
            hint = did_you_mean(key, found, f"it has {keys or 'none'}")
            raise VectorError(f"{path} has no tensor {shown(key)}", hint)
        tensor = found[key]()
        if tensor.dtype not in FLOATS:
            raise VectorError(f"{tensor} holds {tensor.dtype} values", "directions are floating-point values")
    return tensor


def _tensors(path: Path) -> Mapping[str, Callable[[], Tensor]]:
    try:
        with open_regular(path) as file:
            start = file.read(9)
            if start.startswith(b"PK\x03\x04"):
                return _npz(path)
            if start[8:] == b"{":
                return _safetensors(path, struct.unpack("<Q", start[:8])[0])
    except (OSError, *_FAULTS) as error:
        raise _unreadable(path, error) from error
    if start.startswith(b"\x80"):
        raise _pickle(path)
    raise VectorError(
        f"{path} is neither a safetensors file nor an .npz archive", "these hold tensors by their keys"
    )


def _safetensors(path: Path, size: int) -> dict[str, Callable[[], Tensor]]:
    if size > MAX_HEADER:
        raise ValueError(f"its header has {size:,} bytes, and at most {MAX_HEADER:,} are read")
    with open_regular(path) as file:
        file.seek(8)
        header = parse_json(_exactly(file, size))
        last = file.seek(0, 2) - 8 - size

    def tensor(key: str) -> Tensor:
        try:
            entry = header[key]
            dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            whole = all(type(n) is int and 0 <= n < 2**62 for n in (*shape, start, end)) and end <= last
            kind = np.dtype(FLOATS[dtype]) if dtype in FLOATS else None
            if not whole or (kind is not None and prod(shape) * kind.itemsize != end - start):
                raise ValueError(f"what its header says of {shown(key)} does not agree with its size")
        except (TypeError, KeyError, ValueError) as error:
            why = str(error) if isinstance(error, ValueError) else "its header is damaged"
            raise VectorError(f"{path} is not whole: {why}", _WHOLE) from None
        return Tensor(path, key, shape, str(dtype), lambda: _from(path, 8 + size + start))

    return {key: partial(tensor, key) for key in header if key != "__metadata__"}


def _npz(path: Path) -> dict[str, Callable[[], Tensor]]:
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    if any(name.endswith("data.pkl") for name in entries):
        raise _pickle(path)

    def tensor(name: str) -> Tensor:
        entry, key = entries[name], name.removesuffix(".npy")
        try:
            if entry.file_size > _MOST_COMPRESSED * max(entry.compress_size, 1):
                raise ValueError(f"{shown(key)} would swell to {entry.file_size:,} bytes")
            with _member(path, name, 0) as member:
                shape, by_column, dtype = numpy_file.read_header(member)
                start = member.tell()
            if start + prod(shape) * dtype.itemsize != entry.file_size:
                raise ValueError(f"what the header of {shown(key)} says does not agree with its size")
        except Exception as error:  # numpy evaluates the header as Python, which ends in errors of many kinds
            raise _unreadable(path, error) from error
        kinds = {np.dtype(one): word for word, one in FLOATS.items() if word != "BF16"}
        known = kinds.get(dtype, str(dtype))
        return Tensor(path, key, shape, known, lambda: _member(path, name, start), by_column)

    arrays = [name for name in entries if name.endswith(".npy")]
    return {name.removesuffix(".npy"): partial(tensor, name) for name in arrays}


@contextmanager
def _from(path: Path, start: int) -> Iterator[IO[bytes]]:
    with open_regular(path) as file:
        file.seek(start)
        yield file


@contextmanager
def _member(path: Path, name: str, start: int) -> Iterator[IO[bytes]]:
    with open_regular(path) as file, zipfile.ZipFile(file) as archive, archive.open(name) as member:
        member.seek(start)
        yield member


def _exactly(file: IO[bytes], size: int) -> bytes:
    found = file.read(size)
    if len(found) != size:
        raise ValueError("it ends too early")
    return found


def _pickle(path: Path) -> VectorError:
    return VectorError(
        f"{path} is a pickle, which is a program and is not read for a decoder", _AS_SAFETENSORS
    )


def _unreadable(path: Path, error: Exception) -> VectorError:
    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
    hint = "is it the path of a decoder's file?" if isinstance(error, OSError) else _WHOLE
    return VectorError(f"could not read {path}: {why[:200]}", reading_hint(error, hint))
