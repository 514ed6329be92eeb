"""What travels between the driver and an engine's process: plain data of our own types and arrays.

A block's steerings are those of the table, which is there already, so that a block names them by their places
and not one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vsteer.protocol import Block, BlockScores, EngineInfo, Prompt, Request, Result, Steering, Vectors

Places = NDArray[np.int32]
UNSTEERED = -1


@dataclass(frozen=True)
class Table:
    """What an engine loads. It travels once a node."""

    number: int
    vectors: Vectors
    steerings: tuple[Steering, ...]


@dataclass(frozen=True)
class PackedBlock:
    id: str
    prompt: Prompt
    asked: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    # places in the table's steerings; what is not among them comes as it is
    steerings: Places | tuple[Steering | None, ...]
    divergence: bool = False


Work = PackedBlock | tuple[Request, ...]


@dataclass(frozen=True)
class Sent:
    """A unit of work, which one engine gets whole: a block, or requests of one prompt."""

    number: int
    work: Work


@dataclass(frozen=True)
class Where:
    """The process that is to hold an engine."""

    node: str  # Ray's id of it
    host: str
    pid: int


@dataclass(frozen=True)
class Started:
    info: EngineInfo
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Loaded:
    table: int
    sha256: str  # of what its workers hold


@dataclass(frozen=True)
class Answers:
    """What came since the last ones, each with the number of its unit."""

    run: int
    results: tuple[tuple[int, Result | BlockScores], ...]
    dry: bool  # it ran out of work meanwhile
    steps: int  # the engine's own count, which stands still while it hangs


@dataclass(frozen=True)
class Failed:
    """The last that comes of an engine."""

    error: BaseException
    exit_codes: tuple[int | None, ...] = ()


class Packing:
    """The driver's side: blocks with the places of their steerings."""

    def __init__(self, steerings: Sequence[Steering]) -> None:
        self._place = {steering: n for n, steering in enumerate(steerings)}
        self._last: tuple[Steering | None, ...] = ()
        self._packed: Places | tuple[Steering | None, ...] = ()

    def packed(self, block: Block) -> PackedBlock:
        # the prompts of an evaluation share one tuple, unless rows of them stand already
        if block.steerings is not self._last:
            self._last, self._packed = block.steerings, self._places(block.steerings)
        return PackedBlock(block.id, block.prompt, block.asked, self._packed, block.divergence)

    def _places(self, steerings: tuple[Steering | None, ...]) -> Places | tuple[Steering | None, ...]:
        places = np.empty(len(steerings), np.int32)
        for n, steering in enumerate(steerings):
            place = UNSTEERED if steering is None else self._place.get(steering)
            if place is None:
                return steerings
            places[n] = place
        return places


@dataclass
class Unpacking:
    """The engine's side."""

    table: Sequence[Steering] = ()
    _last: bytes = b""
    _steerings: tuple[Steering | None, ...] = field(default=())

    def block(self, packed: PackedBlock) -> Block:
        steerings = self._unpacked(packed.steerings)
        return Block(packed.id, packed.prompt, packed.asked, steerings, packed.divergence)

    def _unpacked(self, steerings: Places | tuple[Steering | None, ...]) -> tuple[Steering | None, ...]:
        if isinstance(steerings, tuple):
            return steerings
        if (places := steerings.tobytes()) != self._last:
            self._last = places
            self._steerings = tuple(None if place < 0 else self.table[place] for place in steerings.tolist())
        return self._steerings
