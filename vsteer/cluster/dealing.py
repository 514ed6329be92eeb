"""Which work is where: each unit is one engine's at a time, and each answer is given once. No Ray here."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vsteer.cluster.member import Member, Unit
from vsteer.cluster.wire import Answers
from vsteer.errors import SteeringFault
from vsteer.protocol import Block, BlockScores, Request, Result

# Work that so many engines died of is done alone on one, and fails if that dies too.
SUSPECT = 2
# So many blocks are under way in an engine at first. Whenever one runs dry it gets more, up to so many.
BLOCKS, MOST_BLOCKS = 4, 1024
MOST_REQUESTS = 16_384
# So many requests of one prompt go to the same engine, and so many at once.
TOGETHER, AT_ONCE = 4096, 256


class Dealing:
    """The work of one run after another, and the engines that have it."""

    def __init__(self, members: Sequence[Member], requests: int) -> None:
        """`requests` is how many an engine takes at once; twice as many are under way there at first."""
        self.members, self._requests = members, 2 * requests
        self.given: set[str] = set()  # what was taken from the run and isn't answered, by its id
        self._returned: deque[Unit] = deque()  # left behind by an engine that died
        self._suspects: deque[Unit] = deque()  # those of them of which engines may have died
        self._hopeless: deque[tuple[Unit, str]] = deque()  # and those that no engine survives
        self._numbers = itertools.count()
        self._last: tuple[tuple[int, ...], Member] | None = None
        self.window = self._widest = BLOCKS

    def of_blocks(self, blocks: Iterable[Block]) -> Iterator[Unit]:
        self._begin(BLOCKS, MOST_BLOCKS)
        return (self._unit(block, (block,)) for block in blocks)

    def of_requests(self, requests: Iterable[Request]) -> Iterator[Unit]:
        self._begin(self._requests, max(self._requests, MOST_REQUESTS))
        return (self._unit(group, group) for group in grouped(requests, AT_ONCE))

    def deal(self, units: Iterator[Unit]) -> bool:
        """Give out work until every engine has enough of it; whether there may be more."""
        more = True
        while more and (hungry := [member for member in self.members if member.hungry()]):
            unit = self._returned.popleft() if self._returned else next(units, None)
            if unit is None:
                more = False
            else:
                self._member_for(unit, hungry).give(unit)
        # what engines may have died of comes last, and each by itself
        for member in self.members:
            if self._suspects and not more and member.hungry() and not member.under_way:
                member.give(self._suspects.popleft(), alone=True)
        return more

    def heirs(self) -> Iterator[tuple[Member, Member, int]]:
        """Once nothing is left to deal: who has no work, whose it may take over, and how much of it."""
        if self._returned or self._suspects:
            return
        idle = [one for one in self.members if one.hungry() and not one.under_way]
        awaited = [one.heir for one in self.members if one.heir is not None]
        for heir in (one for one in idle if one not in awaited):
            some = [one for one in self.members if one.state == "up" and one.spares and one.heir is None]
            most = max(some, key=lambda one: len(one.under_way), default=heir)
            if len(most.under_way) < 2 or most.alone:
                return
            yield most, heir, len(most.under_way) // 2

    def pass_on(self, member: Member, numbers: Sequence[int]) -> None:
        """What an engine gave back goes to the one for which it was asked, if that still has nothing."""
        heir, member.heir = member.heir, None
        # when it was asked again, there would be no more
        member.spares = bool(numbers)
        for number in numbers:
            unit = member.under_way.pop(number, None)
            if unit is None:
                continue
            unit.is_sent = False
            member.weight -= unit.weight
            if heir is not None and heir.state == "up" and not heir.alone:
                heir.give(unit)
            else:
                self._returned.append(unit)
        if not member.under_way:
            member.moved = 0.0

    def take(self, member: Member, answers: Answers, now: float) -> Iterator[Any]:
        """What the run gets of an engine's answers."""
        if answers.results or answers.steps != member.steps:
            member.moved = now
        member.steps = answers.steps
        for number, result in answers.results:
            unit = member.under_way.get(number)
            name = result.id if isinstance(result, Result) else next(iter(unit.left), "") if unit else ""
            if unit is None or name not in unit.left:
                raise SteeringFault(f"an engine answered {name or number!r}, which it was not given")
            rows, asked = 1, unit.left[name]
            if isinstance(asked, Block):
                rows = len(asked.steerings)
                if not isinstance(result, BlockScores) or len(result.logprobs) != rows:
                    raise SteeringFault(f"the scores of {name!r} are those of another block")
            elif asked.capture:
                rows = 0  # a vector's data
            if len(unit.left) == 1:
                del member.under_way[number]
            member.weight -= 1
            member.count(rows, now)
            yield self._answered(unit, name, result)
        if answers.dry:
            member.window = min(2 * member.window, self._widest)
        if not member.under_way:
            member.alone, member.moved = False, 0.0

    def take_back(self, member: Member, why: str, its_own_death: bool) -> int:
        """Take what an engine has left unanswered, to be done elsewhere; returns how much that is."""
        alone, left = member.alone, member.take_back()
        for unit in left:
            unit.deaths += its_own_death
            if alone and its_own_death:
                self._hopeless.append((unit, why))
            else:
                (self._suspects if unit.deaths >= SUSPECT else self._returned).append(unit)
        return sum(unit.weight for unit in left)

    def failed(self) -> Iterator[Any]:
        """The answers of work that no engine survives."""
        while self._hopeless:
            unit, why = self._hopeless.popleft()
            error = f"{unit.deaths} engines died of it: {why}"
            for name, asked in list(unit.left.items()):
                if isinstance(asked, Block):
                    yield self._answered(unit, name, _failed_block(asked, error))
                else:
                    yield self._answered(unit, name, Result(name, "error", error=error))

    def clear(self) -> None:
        for queue in (self._returned, self._suspects, self._hopeless):
            queue.clear()
        self.given.clear()

    def _begin(self, window: int, widest: int) -> None:
        if self.given:
            raise SteeringFault("a run began while another's work is under way")
        self._last, self.window, self._widest = None, window, widest
        for member in self.members:
            member.window = window

    def _unit(self, content: Block | tuple[Request, ...], parts: Sequence[Block | Request]) -> Unit:
        for part in parts:
            if part.id in self.given:
                raise SteeringFault(f"two things under way are both named {part.id!r}")
            self.given.add(part.id)
        return Unit(next(self._numbers), content, {part.id: part for part in parts})

    def _member_for(self, unit: Unit, hungry: Sequence[Member]) -> Member:
        """The last prompt's engine, where this one is the same or continues it; else the least busy."""
        chosen = min(hungry, key=lambda one: one.weight / one.window)
        if isinstance(unit.content, Block):
            return chosen
        tokens = unit.content[0].prompt.token_ids
        if self._last is not None:
            first, last = self._last
            together = last.state == "up" and not last.alone and last.weight < TOGETHER
            if together and tokens[: len(first)] == first:
                return last
        self._last = (tokens, chosen)
        return chosen

    def _answered(self, unit: Unit, name: str, result: Result | BlockScores) -> Any:
        asked = unit.left.pop(name)
        self.given.remove(name)
        return (asked, result) if isinstance(asked, Block) else result


def grouped(requests: Iterable[Request], most: int) -> Iterator[tuple[Request, ...]]:
    """Requests that follow each other and have a prompt in common, or continue it, at most so many."""
    group: list[Request] = []
    for request in requests:
        if group:
            first = group[0].prompt.token_ids
            if len(group) == most or request.prompt.token_ids[: len(first)] != first:
                yield tuple(group)
                group = []
        group.append(request)
    if group:
        yield tuple(group)


def _failed_block(block: Block, error: str) -> BlockScores:
    count, width = len(block.steerings), sum(len(tokens) for _, tokens in block.asked)
    none = np.zeros(count, np.int32)
    return BlockScores(np.full((count, width), np.nan), none, none, dict.fromkeys(range(count), error))
