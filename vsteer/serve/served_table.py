"""The steering table of a server: it grows while requests are under way, until it is full.

A steering that is new becomes a cell behind those that are there, so nothing that is in use changes. What
comes in together is added together.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vsteer.engine.table import Capacity, SteeringTable
from vsteer.errors import EngineError, SteeringFault
from vsteer.protocol import Direction, EngineInfo, Steering, Term, Vectors

Rpc = Callable[..., Awaitable[list[Any]]]


class TableFull(EngineError):
    """There is no room for another steering."""


class ServedTable:
    """`rpc` asks every worker by the name of a method."""

    def __init__(self, rpc: Rpc, info: EngineInfo, capacity: Capacity) -> None:
        self._rpc, self._info, self._capacity = rpc, info, capacity
        self._vectors: dict[str, Mapping[int, Direction]] = {}
        self._steerings: list[Steering] = []
        self._held: SteeringTable | None = None  # by the workers
        self._sha256 = ""
        self._waiting: dict[tuple[Term, ...], Steering] = {}
        self._growing = asyncio.Lock()

    def know(self, vectors: Vectors) -> None:
        """Vectors that steerings may use from now on."""
        for name, directions in vectors.items():
            known = self._vectors.setdefault(name, directions)
            if known.keys() != directions.keys() or any(
                not np.array_equal(known[layer], directions[layer]) for layer in known
            ):
                raise SteeringFault(f"two vectors of a server are both called {name!r}")

    async def admit(self, steering: Steering) -> tuple[int, str]:
        """The cell and the fingerprint of a steering, which the workers hold from now on; 0 if it is none."""
        terms = steering.acting_terms
        if not terms:
            return 0, ""
        if terms not in self._cells():
            self._build([steering])  # what is wrong with it is its own
            self._waiting[terms] = steering
            # whoever asked may go away meanwhile, but not half of an addition
            await asyncio.shield(self._grow())
        if terms not in self._cells():
            if self._room() > 0:
                raise EngineError("the engine did not take the steering", hint="ask again")
            raise TableFull(
                f"the server holds {len(self._cells())} steerings and takes no other",
                hint="use one of those, or start it with a larger --max-steerings",
            )
        assert self._held is not None
        cell = self._held.cells[terms]
        return cell, self._held.fingerprints[cell]

    def _cells(self) -> Mapping[tuple[Term, ...], int]:
        return self._held.cells if self._held else {}

    def _room(self) -> int:
        return self._capacity.cells - 1 - len(self._cells())

    async def _grow(self) -> None:
        async with self._growing:
            new = [one for terms, one in self._waiting.items() if terms not in self._cells()][: self._room()]
            self._waiting.clear()
            if not new:
                return
            table = await asyncio.to_thread(self._build, [*self._steerings, *new])
            with tempfile.TemporaryDirectory(prefix="vsteer-") as folder:
                path = Path(folder, "table.safetensors")
                table.save(path, self._held)
                answers = await self._rpc("vsteer_extend_table", str(path), self._sha256)
            if len({answer["sha256"] for answer in answers}) != 1:
                raise SteeringFault("the workers hold different steering tables")
            held = {layer for answer in answers for layer in answer["layers"]}
            if missing := set(range(self._info.layers)) - held:
                raise SteeringFault(f"no worker steers layers {sorted(missing)}")
            self._held, self._sha256 = table, answers[0]["sha256"]
            self._steerings += new

    def _build(self, steerings: list[Steering]) -> SteeringTable:
        info = self._info
        return SteeringTable.build(self._vectors, steerings, info.layers, info.hidden_size, self._capacity)
