"""One engine of several as the driver sees it: its process, what it has under way, and how it has fared."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from vsteer.cluster.wire import Packing, Sent, Where
from vsteer.protocol import Block, EngineStanding, Request

# The driver counts rows a second over so long.
RATE_SECONDS = 30.0


@dataclass(eq=False)
class Unit:
    """What one engine gets whole: a block, or requests of one prompt."""

    number: int
    content: Block | tuple[Request, ...]
    left: dict[str, Request | Block]  # what isn't answered, by its id
    deaths: int = 0  # of engines that had it under way
    is_sent: bool = False

    @property
    def weight(self) -> int:
        return len(self.left)

    def sent(self, packing: Packing) -> Sent:
        self.is_sent = True
        if isinstance(self.content, Block):
            return Sent(self.number, packing.packed(self.content))
        return Sent(self.number, tuple(one for one in self.left.values() if isinstance(one, Request)))


@dataclass(eq=False)
class Member:
    """It has an actor while `waiting` (for room on a node), `starting`, `loading`, `up` and `unreachable`."""

    number: int
    actor: Any = None
    state: str = "given up"
    where: Where | None = None
    call: Any = None  # the one answer that is awaited of it
    window: int = 0  # how much may be under way there
    under_way: dict[int, Unit] = field(default_factory=dict)
    weight: int = 0  # of all that is under way
    alone: bool = False  # whether what it has under way is to be all that it has
    spares: bool = True  # whether it may have work of which nothing was begun
    sparing: Any = None  # what it was asked to give back, and for whom
    heir: Member | None = None
    quick_deaths: int = 0  # one after the other, before anything was answered
    deaths: int = 0
    answered: bool = False  # anything, since it was last started
    rows: int = 0
    steps: int = -1
    moved: float = 0.0  # when something last came of it
    started: float = field(default_factory=time.monotonic)
    last_error: str = ""
    _recent: deque[tuple[float, int]] = field(default_factory=deque)

    def begin(self, window: int) -> None:
        """It has an actor, started just now."""
        self.state, self.where, self.window = "waiting", None, window
        self.answered, self.steps, self.started = False, -1, time.monotonic()

    def end(self) -> None:
        self.actor, self.call, self.state = None, None, "given up"
        self.sparing, self.heir = None, None

    @property
    def alive(self) -> bool:
        return self.actor is not None

    def give(self, unit: Unit, alone: bool = False) -> None:
        self.under_way[unit.number] = unit
        self.weight += unit.weight
        self.alone, self.spares = alone, True

    def hungry(self) -> bool:
        return self.state == "up" and not self.alone and self.weight < self.window

    def count(self, rows: int, now: float) -> None:
        self.rows += rows
        self.answered, self.quick_deaths = True, 0
        self._recent.append((now, rows))
        while now - self._recent[0][0] > RATE_SECONDS:
            self._recent.popleft()

    def rate(self, now: float) -> float:
        """Rows a second, lately."""
        recent = [one for one in list(self._recent) if now - one[0] <= RATE_SECONDS]
        if self.state != "up" or not recent:
            return 0.0
        return sum(rows for _, rows in recent) / max(1.0, now - recent[0][0])

    def standing(self, now: float) -> EngineStanding:
        host = self.where.host if self.where else ""
        rate = round(self.rate(now), 1)
        return EngineStanding(self.number, self.state, host, self.rows, rate, self.deaths, self.last_error)

    def take_back(self) -> list[Unit]:
        left = list(self.under_way.values())
        self.under_way.clear()
        self.weight = 0
        self.alone, self.moved = False, 0.0
        for unit in left:
            unit.is_sent = False
        return left
