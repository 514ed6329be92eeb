"""Sets of row ids, 16 bytes each: ten million take 160 MB, where a Python set would take a gigabyte."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

# NumPy drops trailing zero bytes when it hands one of these out, but compares all 16 rightly.
PACKED = np.dtype("S16")
Packed = NDArray[np.bytes_]


def pack(row_ids: Sequence[str]) -> Packed:
    """Ids of 32 hex digits as 16 bytes each."""
    packed = np.frombuffer(bytes.fromhex("".join(row_ids)), PACKED)
    if set(map(len, row_ids)) - {32} or len(packed) != len(row_ids):
        raise ValueError("a row id is 32 hex digits")
    return packed


def pack_column(row_ids: pa.Array) -> Packed:
    """The same of a column, without a Python string for each."""
    try:
        digits = row_ids.cast(pa.binary()).cast(pa.binary(32))
    except pa.ArrowInvalid as error:
        raise ValueError("a row id is 32 hex digits") from error
    start = 32 * digits.offset
    return np.frombuffer(
        bytes.fromhex(str(digits.buffers()[1][start : start + 32 * len(digits)], "ascii")), PACKED
    )


def unpack(packed: Packed) -> list[str]:
    digits = np.ascontiguousarray(packed).tobytes().hex()
    return [digits[start : start + 32] for start in range(0, len(digits), 32)]


@dataclass(frozen=True)
class RowIds:
    """A set of row ids."""

    packed: Packed  # sorted, each once

    @classmethod
    def of(cls, row_ids: Iterable[str]) -> RowIds:
        return cls.of_packed(packed_in_chunks(row_ids))

    @classmethod
    def of_packed(cls, parts: Iterable[Packed]) -> RowIds:
        together = np.concatenate([np.empty(0, PACKED), *parts])
        together.sort()
        again = together[1:] == together[:-1]
        return cls(np.delete(together, np.flatnonzero(again)) if again.any() else together)

    def __len__(self) -> int:
        return len(self.packed)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self.packed), 65536):
            yield from unpack(self.packed[start : start + 65536])

    def places(self, wanted: Packed) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where in `packed` each would stand, and whether it does."""
        if not len(self.packed):
            return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), np.bool_)
        places = np.searchsorted(self.packed, wanted)
        return places, self.packed[np.minimum(places, len(self.packed) - 1)] == wanted


def packed_in_chunks(row_ids: Iterable[str]) -> Iterator[Packed]:
    ids = iter(row_ids)
    while chunk := list(islice(ids, 65536)):
        yield pack(chunk)
