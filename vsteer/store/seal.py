"""A checksum within a Parquet or safetensors file, of all its bytes: these formats have none of all of them.

The file is written with zeros in the checksum's place, in its metadata; the checksum of that is put there.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pyarrow as pa

_MARK = b"vsteer-crc32="
_ZEROS = b"00000000"
# The text that a file's metadata has until the file is sealed.
PLACE = (_MARK + _ZEROS).decode()
_KEY = "seal"
_PIECE = 1 << 20


def with_place(schema: pa.Schema) -> pa.Schema:
    """The schema of a file that is to be sealed."""
    return schema.with_metadata({**(schema.metadata or {}), _KEY: PLACE})


def seal(path: Path) -> None:
    place = _place(path)
    assert place is not None
    checksum = _checksum(path, place)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(checksum)


def broken(path: Path) -> bool | None:
    """Whether the bytes are others than those that were sealed; None for a file without a seal."""
    place = _place(path)
    if place is None:
        return None
    with path.open("rb") as file:
        file.seek(place)
        found = file.read(len(_ZEROS))
    return found != _checksum(path, place)


def _place(path: Path) -> int | None:
    """Where the checksum stands: in Parquet's footer, whose length the file's end tells, or in the header."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(8)
        if start.startswith(b"PAR1"):
            file.seek(max(0, size - 8))
            length = int.from_bytes(file.read(4), "little")
            begin = size - 8 - length
        else:
            begin, length = 8, int.from_bytes(start, "little")
        if begin < 0:
            return None
        file.seek(begin)
        at = file.read(min(length, size)).find(_MARK)
    return None if at < 0 else begin + at + len(_MARK)


def _checksum(path: Path, place: int) -> bytes:
    """The CRC-32 of the file with zeros in the checksum's place, as hex digits."""
    crc = 0
    with path.open("rb") as file:
        for stretch, zeros in ((place, len(_ZEROS)), (max(0, path.stat().st_size - place - len(_ZEROS)), 0)):
            left = stretch
            while left and (piece := file.read(min(left, _PIECE))):
                crc = zlib.crc32(piece, crc)
                left -= len(piece)
            file.seek(zeros, os.SEEK_CUR)
            crc = zlib.crc32(_ZEROS[:zeros], crc)
    return f"{crc:08x}".encode()
