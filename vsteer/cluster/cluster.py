"""Several engines as one: each in its own process, on whichever node there is room; work goes to those ready.

Engines may come late, die, and come back on another node; what one leaves undone is done elsewhere, and the
run waits while there is none.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

from vsteer.cluster.dealing import Dealing
from vsteer.cluster.host import MakeEngine, as_actor, versions
from vsteer.cluster.member import Member, Unit
from vsteer.cluster.placement import check_room, find_share, user_binding
from vsteer.cluster.session import RaySession
from vsteer.cluster.wire import Answers, Failed, Loaded, Packing, Started, Table, Where
from vsteer.errors import EngineError, ModelError, SteeringFault, UnsupportedError, VsteerError
from vsteer.packages import __version__, vllm_version
from vsteer.protocol import (
    Block,
    BlockScores,
    Engine,
    EngineInfo,
    EngineStanding,
    Request,
    Result,
    Steering,
    Vectors,
)

# An engine that dies so often, one time after the other and before it has answered anything, is given up.
QUICK_DEATHS = 3
# An engine that has work under way and makes no step for so long hangs.
STALL_SECONDS = 600.0
STOP_SECONDS = 10.0
# After a connection broke, Ray knows within so long whether the process or its whole node is gone.
UNREACHABLE_SECONDS = 60.0
# What Ray says of a process that went with its node; nothing else of its error tells.
NODE_DIED = "its node has died"


class OnEvent(Protocol):
    """Is called with what happens to engines: the event's name and its fields."""

    def __call__(self, event: str, **fields: Any) -> None: ...


class Cluster(Engine):
    """An engine made of engines. `make` starts one in its own process, so it is pickled, by its name."""

    def __init__(
        self,
        make: MakeEngine,
        *,
        least: int,
        most: int,
        ranks: int = 1,
        gpu: bool = False,
        requests: int = 256,
        address: str | None = None,
        on_event: OnEvent = lambda event, **fields: None,
    ) -> None:
        """There must be room for `least` engines of `ranks` devices at the start, and no more than `most` are
        started. `requests` is how many one has under way. It is ready when the first engine is."""
        self.steps = 0
        self._make, self._on_event = make, on_event
        self._info: EngineInfo | None = None
        # a driver that could run an engine has what all must have, and else the first engine
        self._versions = versions() if vllm_version() else None
        self._table: Table | None = None
        self._held = ""  # what the workers of the first engine hold of it
        self._packing = Packing(())
        self._run = 0
        self._quick_deaths = 0  # one after the other, of whichever engine
        self._killed = threading.Event()
        self.members = [Member(number) for number in range(most)]
        self._dealing = Dealing(self.members, requests)
        self._session = RaySession(address, len(user_binding()) or None)
        self._ray = self._session.ray
        try:
            nodes = self._nodes()
            self._share = find_share(ranks, gpu, most, nodes)
            check_room(self._share, least, nodes)
            self._actor = as_actor(self._ray, self._share)
            for member in self.members:
                self._start(member)
            self.wait_for(1)
        except BaseException:
            self.close()
            raise
        assert self._info is not None
        self.info: EngineInfo = self._info

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        if self._dealing.given:
            raise SteeringFault("load() was called while work is under way")
        self._table = Table(self._table.number + 1 if self._table else 1, vectors, tuple(steerings))
        self._packing, self._held = Packing(self._table.steerings), ""
        self._stored = self._ray.put(self._table)
        for member in self.members:
            if member.state == "up":
                member.state = "loading"
        self.wait_for(1)

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yield results as they come. Leaving the loop early drops what is under way."""
        return cast("Iterator[Result]", self._through(self._dealing.of_requests(requests)))

    def run_blocks(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, BlockScores]]:
        """As `run`, block by block."""
        return cast("Iterator[tuple[Block, BlockScores]]", self._through(self._dealing.of_blocks(blocks)))

    def engines(self) -> list[EngineStanding]:
        now = time.monotonic()
        return [member.standing(now) for member in self.members]

    def wait_for(self, engines: int) -> None:
        """Wait until so many are up."""
        while sum(member.state == "up" for member in self.members) < engines:
            deque(self._receive(), maxlen=0)

    def under_way(self) -> list[str]:
        """What living engines have; nothing while there is none, since nothing hangs then."""
        units = [unit for member in self.members for unit in list(member.under_way.values())]
        return [name for unit in units for name in list(unit.left)]

    def kill(self) -> None:
        self._killed.set()

    def close(self) -> None:
        with contextlib.suppress(Exception):  # a cluster that is gone has nothing left to end
            ready = [member for member in self.members if member.state in ("loading", "up")]
            if ready and not self._killed.is_set():
                stops = [member.actor.stop.remote() for member in ready]
                self._ray.wait(stops, num_returns=len(stops), timeout=STOP_SECONDS)
        for member in self.members:
            self._end(member)
        self._session.close()

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _through(self, units: Iterator[Unit]) -> Iterator[Any]:
        self._run += 1
        try:
            while (more := self._dealing.deal(units)) or self._dealing.given:
                if not more:
                    self._share_out()
                for result in self._receive():
                    self.steps += 1
                    yield result
        finally:
            self._abandon()

    def _share_out(self) -> None:
        """At the end of a run an engine that has nothing left takes over what another has not begun."""
        for member, heir, count in self._dealing.heirs():
            member.heir = heir
            member.sparing = member.actor.give_back.remote(self._run, count)

    def _receive(self) -> Iterator[Any]:
        """What comes within a second, once everybody has been asked, after a look at which engines live."""
        if self._killed.is_set():
            raise EngineError("the engines were ended", hint="nothing came of them for too long")
        for member in self.members:
            self._ask(member)
        calls = {member.call: member for member in self.members if member.call is not None}
        calls |= {member.sparing: member for member in self.members if member.sparing is not None}
        ready = []
        if calls:
            ready, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)
        if calls and not ready:
            ready, _ = self._ray.wait(list(calls), num_returns=1, timeout=1.0)
        for call in ready:
            member = calls[call]
            if call == member.sparing:
                self._pass_on(member)
                continue
            if call != member.call:
                continue  # its engine was ended meanwhile
            member.call = None
            try:
                message = self._ray.get(call)
            except self._ray.exceptions.RayTaskError:
                raise  # a fault of ours is loud
            except self._ray.exceptions.ActorUnavailableError:
                self._lose(member)
            except self._ray.exceptions.RayError as error:
                if member.state == "waiting" and NODE_DIED in str(error):
                    # Ray gave it room on a node of whose death it did not know yet; no engine was there
                    self._start(member)
                else:
                    self._bury(member, _died(error))
            else:
                yield from self._take(member, message)
        now = time.monotonic()
        for member in self.members:
            if member.state == "unreachable" and now - member.moved > UNREACHABLE_SECONDS:
                self._bury(member, _broken())
            elif member.moved and now - member.moved > STALL_SECONDS:
                self._bury(member, EngineError("it hangs", hint="its work is done again"))
        yield from self._dealing.failed()

    def _pass_on(self, member: Member) -> None:
        call, member.sparing = member.sparing, None
        try:
            numbers = self._ray.get(call)
        except self._ray.exceptions.RayTaskError:
            raise
        except self._ray.exceptions.RayError:
            numbers = ()  # it died, as its other call says
        self._dealing.pass_on(member, numbers)

    def _ask(self, member: Member) -> None:
        """Ask an engine for what it is to do next, unless an answer is awaited already."""
        if member.call is not None:
            return
        match member.state:
            case "waiting" | "unreachable":
                member.call = member.actor.where.remote()
            case "starting":
                member.call = member.actor.start.remote(self._make)
            case "loading":
                member.call = member.actor.load.remote(self._stored)
            case "up" if member.under_way:
                member.moved = member.moved or time.monotonic()
                new = [unit for unit in member.under_way.values() if not unit.is_sent]
                sent = tuple(unit.sent(self._packing) for unit in new)
                member.call = member.actor.exchange.remote(self._run, sent)

    def _take(self, member: Member, message: Any) -> Iterator[Any]:
        match message:
            case Where() if member.state == "unreachable":
                # it lives, but what it answered meanwhile is lost
                self._bury(member, _broken())
            case Where():
                member.where, member.state = message, "starting"
            case Started():
                self._welcome(member, message)
            case Loaded():
                self._hold(member, message)
            case Answers():
                if message.run == self._run:
                    yield from self._dealing.take(member, message, time.monotonic())
                if message.results:
                    self._quick_deaths = 0
            case Failed(error, codes):
                # A fault of ours is loud, and what this grid can't have is refused wherever it is started.
                if not isinstance(error, EngineError | ModelError):
                    raise error
                self._bury(member, error, codes)
            case _:
                raise SteeringFault(f"an engine's process sent {type(message).__name__}")

    def _start(self, member: Member) -> None:
        member.actor = self._actor.remote(self._share)
        member.begin(self._dealing.window)

    def _welcome(self, member: Member, started: Started) -> None:
        assert member.where is not None
        ours, theirs = self._versions or {**started.versions, "vsteer": __version__}, started.versions
        differs = {
            name: (ours.get(name, "not installed"), theirs.get(name, "not installed"))
            for name in {**ours, **theirs}
            if ours.get(name) != theirs.get(name)
        }
        if self._info not in (None, started.info):
            differs["the engine"] = (str(self._info), str(started.info))
        for name, (elsewhere, here) in differs.items():
            error = UnsupportedError(
                f"{name} is {here} on {member.where.host} and {elsewhere} elsewhere: numbers do not compare",
                hint="install the same versions on every node",
            )
            self._bury(member, error)
            return
        self._info, self._versions = started.info, ours
        member.state = "loading" if self._table else "up"
        self._on_event(
            "replica_start",
            replica=member.number,
            host=member.where.host,
            node=member.where.node[:12],
            pid=member.where.pid,
            seconds=round(time.monotonic() - member.started, 1),
        )

    def _hold(self, member: Member, loaded: Loaded) -> None:
        assert self._table is not None
        if loaded.table != self._table.number:
            return  # another came meanwhile
        self._held = self._held or loaded.sha256
        if loaded.sha256 != self._held:
            raise SteeringFault(f"the workers of engine {member.number} hold another steering table")
        member.state = "up"

    def _lose(self, member: Member) -> None:
        """The connection broke. The next call tells why: its own death counts, its node's does not."""
        if member.state == "unreachable":
            time.sleep(0.1)  # it may be refused at once, again and again
        else:
            member.state, member.moved = "unreachable", time.monotonic()

    def _bury(self, member: Member, why: VsteerError, codes: Sequence[int | None] = ()) -> None:
        """Take back what it left unanswered, and start it again, unless that is hopeless."""
        host, node_died = member.where.host if member.where else "", self._node_died(member)
        self._end(member)
        left = self._dealing.take_back(member, why.message, not node_died)
        member.deaths += 1
        member.last_error = f"the node {host} is gone" if node_died else why.message
        if not node_died and not member.answered:
            member.quick_deaths += 1
            self._quick_deaths += 1
        # a model that isn't there, or other versions, are found again
        hopeless = not isinstance(why, EngineError) or member.quick_deaths >= QUICK_DEATHS
        again = not hopeless and not self._killed.is_set()
        self._on_event(
            "replica_died",
            replica=member.number,
            host=host,
            error=member.last_error,
            exit_codes=list(codes),
            given_back=left,
            restart=member.deaths if again else None,
        )
        # those that wait for room would only take the place of the ones that die
        many = QUICK_DEATHS * max(1, self._share.room(self._nodes()))
        if self._quick_deaths >= many or not (again or any(other.alive for other in self.members)):
            if not isinstance(why, EngineError):
                raise why
            raise EngineError(
                f"no engine stays up; the last died on {host or 'no node'}: {why.message}", hint=why.hint
            ) from why
        if again:
            self._start(member)

    def _node_died(self, member: Member) -> bool:
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        return member.where is not None and member.where.node not in alive

    def _end(self, member: Member) -> None:
        if member.alive:
            with contextlib.suppress(Exception):
                self._ray.kill(member.actor)
        member.end()

    def _abandon(self) -> None:
        """Leave nothing behind in the engines, however the run ended."""
        if not self._dealing.given:
            return
        self._dealing.clear()
        self._run += 1
        for member in self.members:
            if member.take_back() and member.state == "up":
                member.actor.abandon.remote(self._run)


def _broken() -> EngineError:
    return EngineError("the connection to its process broke", hint="its work is done again")


def _died(error: Any) -> EngineError:
    text = " ".join(str(error).split())
    return EngineError(
        f"its process died: {text[:300]}",
        hint="its own message is above; if memory ran out, give a smaller max_num_seqs",
    )
