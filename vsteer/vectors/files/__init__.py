"""Vectors in files: written whole or not at all, read by content.

save(vector, path)     vsteer's safetensors, or llama.cpp's control vector where the path ends in .gguf
load(path)             either of them, or CAA's vec_layer_{L}_{model}.pt: a file or a folder of them
file_sha256(path)      what a row of results knows the file by
"""

import hashlib
import struct
import warnings
from dataclasses import replace
from pathlib import Path

from vsteer.errors import UsageError, VectorError
from vsteer.files import new_file
from vsteer.vectors.checks import check_vector
from vsteer.vectors.files import caa as caa_file
from vsteer.vectors.files import gguf as gguf_file
from vsteer.vectors.files import native as native_file
from vsteer.vectors.vector import SteeringVector

_WRITERS = {".safetensors": native_file.write, ".gguf": gguf_file.write}
_READERS = {"safetensors": native_file.read, "gguf": gguf_file.read, "caa": caa_file.read}


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
    try:
        vector = _READERS[file_format(path)](path)
    except OSError as error:
        raise VectorError(
            f"could not read {path}: {error.strerror or error}", "is the path right, and may you read it?"
        ) from error
    check_vector(vector, str(path))
    return vector if name is None else replace(vector, name=name)


def file_format(path: str | Path) -> str:
    """What `load` takes it for: safetensors, gguf or caa."""
    path = Path(path)
    if path.is_dir():
        return "caa"
    with path.open("rb") as file:
        start, size = file.read(9), path.stat().st_size
    if start.startswith(b"GGUF"):
        return "gguf"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return "caa"
    # safetensors starts with the length of its header, which is a JSON object.
    if start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < 100_000_000:
        return "safetensors"
    raise VectorError(
        f"{path} ({size} bytes) is no vector: neither safetensors, nor GGUF, nor a torch file",
        "vsteer reads its own .safetensors, llama.cpp's .gguf and CAA's .pt",
    )


def file_sha256(path: str | Path) -> str:
    """The file's hash; for CAA's folder, the hash of the names and hashes of its files, by layer."""
    path = Path(path)
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = [f"{file_sha256(file)}  {file.name}\n" for file in caa_file.files_in(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
