"""Vectors in files: written whole or not at all, read by content.

save(vector, path)     vsteer's safetensors, or llama.cpp's control vector where the path ends in .gguf
load(path)             either of them, CAA's vec_layer_{L}_{model}.pt (a file or a folder of them), a torch
                       file of a dictionary of layers, others' safetensors, or numpy's .npy
file_sha256(path)      what a row of results knows the file by
"""

import hashlib
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vsteer.errors import UsageError, VectorError
from vsteer.files import new_file, open_regular, read_regular, reading_hint
from vsteer.vectors.checks import MAX_BYTES, check_vector
from vsteer.vectors.files import caa as caa_file
from vsteer.vectors.files import gguf as gguf_file
from vsteer.vectors.files import native as native_file
from vsteer.vectors.files import numpy_file
from vsteer.vectors.vector import SteeringVector

_ONE_OF_MANY = (
    "of a decoder, choose one direction: key, index and layer in a grid, or --key, --index and --at-layer"
)
_WRITERS = {".safetensors": native_file.write, ".gguf": gguf_file.write}
_READERS: dict[str, Callable[[Path, bytes], SteeringVector]] = {
    "safetensors": native_file.read,
    "gguf": gguf_file.read,
    "caa": caa_file.read,
    "npy": numpy_file.read,
}


class VectorWarning(UserWarning):
    """A file format can't hold all of a vector."""


def save(vector: SteeringVector, path: str | Path, overwrite: bool = False) -> None:
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise UsageError(
            f"{path} ends in neither .safetensors nor .gguf", "the ending says which format is written"
        )
    check_vector(vector, f"vector {vector.name!r}")
    if path.suffix == ".gguf" and 0 in vector.directions:
        if vector.layers == (0,):
            raise VectorError(
                f"vector {vector.name!r} has layer 0 only, and GGUF control vectors have none",
                "save it as .safetensors",
            )
        message = f"{path.name} lacks layer 0: llama.cpp's control vectors start at direction.1"
        warnings.warn(message, VectorWarning, stacklevel=2)
    with new_file(path, VectorError, overwrite) as temporary:
        _WRITERS[path.suffix](vector, temporary)


def load(path: str | Path, name: str | None = None) -> SteeringVector:
    """The vector in the file, or in CAA's folder, under its own name or `name`."""
    path = Path(path)
    if path.is_dir():
        with _readable(path):
            vector = caa_file.read_folder(path)
    else:
        content = _content(path)
        vector = _READERS[_format(path, content[:9], len(content))](path, content)
    check_vector(vector, str(path))
    return vector if name is None else replace(vector, name=name)


def file_format(path: str | Path) -> str:
    """What `load` takes it for: safetensors, gguf, npy or caa."""
    path = Path(path)
    if path.is_dir():
        return "caa"
    with _readable(path), open_regular(path) as file:
        return _format(path, file.read(9), path.stat().st_size)


def file_sha256(path: str | Path) -> str:
    """The file's hash; for CAA's folder, the hash of the names and hashes of its files, by layer."""
    path = Path(path)
    if not path.is_dir():
        return hashlib.sha256(_content(path)).hexdigest()
    lines = [f"{file_sha256(file)}  {file.name}\n" for file in caa_file.files_in(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _format(path: Path, start: bytes, size: int) -> str:
    if start.startswith(b"GGUF"):
        return "gguf"
    if start.startswith(numpy_file.MAGIC):
        return "npy"
    # safetensors starts with the length of its header, a JSON object; the length may begin as a pickle does.
    if start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < 100_000_000:
        return "safetensors"
    if path.suffix == ".npz" and start.startswith(b"PK"):
        raise VectorError(f"{path} holds arrays by their keys, and none is chosen", _ONE_OF_MANY)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "caa"
    raise VectorError(
        f"{path} ({size} bytes) is no vector: neither safetensors, nor GGUF, nor a torch or numpy file",
        "vsteer reads .safetensors, llama.cpp's .gguf, CAA's and torch's .pt, and .npy",
    )


def _content(path: Path) -> bytes:
    with _readable(path):
        return read_regular(path, MAX_BYTES)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VectorError(
            f"could not read {path}: {error.strerror or error}",
            reading_hint(error, f"is it the path of a vector's file, not a model's? {_ONE_OF_MANY}"),
        ) from error
