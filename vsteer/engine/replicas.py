"""Several engines on one machine behind one: each in a process of its own, on its own devices.

Requests are dealt by prompt, so that a prompt's configurations meet in one prefix cache. A replica that dies
is started again, and what it had not answered goes to whichever is up: every request has one result.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any, Protocol

from vsteer.engine.device_slices import DeviceSlice
from vsteer.engine.replica import Abandon, Answers, Ask, Failed, Load, Loaded, MakeEngine, Stop, serve
from vsteer.errors import EngineError, SteeringFault
from vsteer.protocol import Engine, EngineInfo, Request, Result, Steering, Vectors

# How often one replica is started again.
RESTARTS = 3
# A replica that says nothing for so long, while requests of its are under way, hangs.
STALL_SECONDS = 600.0
# Of one prompt so many requests may wait for one replica; further ones are dealt anew, lest the others idle.
LONGEST_WAIT = 4096
REQUESTS_IN_A_MESSAGE = 256
CLOSE_SECONDS = 5.0


class OnEvent(Protocol):
    """Is called with what happens to replicas: the event's name and its fields."""

    def __call__(self, event: str, **fields: Any) -> None: ...


def window(max_num_seqs: int) -> int:
    """Requests under way in one replica. Its VllmEngine takes 2 * max_num_seqs + 64 of them, and further ones
    must be there before results have gone up and requests come down, or its batch runs dry."""
    return 2 * (2 * max_num_seqs + 64) + 256


class Replicas(Engine):
    """An engine made of engines: `make` runs once in each replica's process, and can be pickled."""

    def __init__(
        self,
        make: MakeEngine,
        places: Sequence[DeviceSlice],
        *,
        window: int,
        one_first: bool = False,
        on_event: OnEvent = lambda event, **fields: None,
    ) -> None:
        """`one_first`: the others start when the first is up, and find what it compiled."""
        self.steps = 0
        self._on_event, self._window = on_event, window
        self._info: EngineInfo | None = None
        self._table: Load | None = None
        self._run = 0
        self._dealt: set[str] = set()  # handed out and not answered
        self._returned: deque[Request] = deque()  # of these, what a replica left behind
        self._group: tuple[tuple[int, ...], _Replica] | None = None
        self._codes: list[int | None] = []
        self._killed = False
        self._replicas = [_Replica(number, make, place) for number, place in enumerate(places)]
        atexit.register(self.close)
        try:
            for some in (self._replicas[:1], self._replicas[1:]) if one_first else (self._replicas,):
                for replica in some:
                    replica.start()
                self._settle()
        except BaseException:
            self.close()
            raise
        assert self._info is not None
        self.info: EngineInfo = self._info

    def load(self, vectors: Vectors, steerings: Iterable[Steering]) -> None:
        if self._dealt:
            raise SteeringFault("load() was called while requests are under way")
        self._table = Load(vectors, tuple(steerings))
        for replica in self._replicas:
            if replica.state == "up":
                replica.load(self._table)
        self._settle()

    def run(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Yield results as they come. Leaving the loop early drops what is under way."""
        if self._dealt:
            raise SteeringFault("a run began while another's requests are under way")
        waiting = iter(requests)
        self._group = None
        try:
            while self._deal(waiting) or self._dealt:
                yield from self._hear()
        finally:
            self._abandon()

    def under_way(self) -> list[str]:
        return list(self._dealt)

    def kill(self) -> None:
        self._killed = True
        for replica in self._replicas:
            replica.kill()

    def exit_codes(self) -> list[int | None]:
        return [*self._codes, *(None for replica in self._replicas if replica.alive)]

    def close(self) -> None:
        atexit.unregister(self.close)
        alive = [replica for replica in self._replicas if replica.alive]
        for replica in alive:
            replica.say(Abandon(self._run + 1))
            replica.say(Stop())
        deadline = time.monotonic() + CLOSE_SECONDS
        for replica in alive:
            wait([replica.process.sentinel], max(0.0, deadline - time.monotonic()))
            replica.end()

    def _deal(self, waiting: Iterator[Request]) -> bool:
        """Hand out requests until every replica has enough of them; whether there may be more."""
        more = True
        while more and any(replica.hungry(self._window) for replica in self._replicas):
            if self._returned:
                request = self._returned.popleft()
            elif (found := next(waiting, None)) is None:
                more = False
                break
            else:
                request = found
                if request.id in self._dealt:
                    raise SteeringFault(f"two requests under way are both named {request.id!r}")
                self._dealt.add(request.id)
            self._replica_for(request).waiting.append(request)
        for replica in self._replicas:
            if replica.state == "up":
                replica.ask(self._run, self._window)
        return more

    def _replica_for(self, request: Request) -> _Replica:
        """That of the prompt before, where this one is the same or goes on from it; else the least busy."""
        tokens = request.prompt.token_ids
        if self._group is not None:
            first, replica = self._group
            if (
                replica.state == "up"
                and tokens[: len(first)] == first
                and len(replica.waiting) < LONGEST_WAIT
            ):
                return replica
        replica = min((one for one in self._replicas if one.state == "up"), key=_Replica.busy)
        self._group = (tokens, replica)
        return replica

    def _settle(self) -> None:
        """Wait until every replica that was started is up with the table, or gone for good."""
        while any(replica.state in ("starting", "loading") for replica in self._replicas):
            deque(self._hear(), maxlen=0)

    def _hear(self) -> Iterator[Result]:
        """What replicas say within a second, and whether they live."""
        alive = [replica for replica in self._replicas if replica.alive]
        handles = {replica.process.sentinel: replica for replica in alive}
        pipes: dict[Any, _Replica] = {replica.pipe: replica for replica in alive}
        said = {(pipes | handles)[ready] for ready in wait([*pipes, *handles], timeout=1)}
        for replica in alive:
            if replica in said:
                yield from self._attend(replica)
            elif replica.asked and time.monotonic() - replica.heard > STALL_SECONDS:
                self._bury(replica, EngineError("it hangs", hint="what was under way is done again"))

    def _attend(self, replica: _Replica) -> list[Result]:
        with contextlib.suppress(EOFError, OSError):
            # of a process that is gone, what it still said is heard first
            if replica.pipe.poll():
                message = replica.pipe.recv()
                replica.heard = time.monotonic()
                return self._take(replica, message)
            if replica.process.is_alive():
                return []
        self._bury(replica)
        return []

    def _take(self, replica: _Replica, message: Any) -> list[Result]:
        match message:
            case Answers(run, results):
                return [self._answered(replica, result) for result in results if run == self._run]
            case EngineInfo():
                if self._info not in (None, message):
                    raise SteeringFault(f"replicas differ: {self._info} and {message}")
                self._info = message
                self._on_event("replica_start", replica=replica.number, seconds=replica.seconds)
                if self._table is not None:
                    replica.load(self._table)
                else:
                    replica.state = "up"
            case Loaded():
                replica.state = "up"
            case Failed(error, codes):
                # an engine that never worked, or can't do what it is asked, won't another time
                hopeless = replica.state != "up" and not replica.restarts
                if hopeless or not isinstance(error, EngineError):
                    raise error
                self._bury(replica, error, codes)
        return []

    def _answered(self, replica: _Replica, result: Result) -> Result:
        if replica.asked.pop(result.id, None) is None:
            raise SteeringFault(f"a replica answered {result.id!r}, which it was not asked")
        self._dealt.remove(result.id)
        self.steps += 1
        return result

    def _bury(
        self, replica: _Replica, why: EngineError | None = None, codes: tuple[int | None, ...] = ()
    ) -> None:
        """Take back what it had not answered, and start it again. `codes` are its engine's, where it told."""
        replica.end()
        if why is None:
            # else it is this call that ended it
            codes = (replica.process.exitcode,)
        self._codes += codes
        left = replica.take_back()
        self._returned.extend(left)
        again = replica.restarts < RESTARTS and not self._killed
        said = why.message if why else f"its process ended with exit code {codes[0]}"
        self._on_event(
            "replica_died",
            replica=replica.number,
            error=said,
            exit_codes=list(codes),
            given_back=len(left),
            restart=replica.restarts + 1 if again else None,
        )
        if again:
            replica.restarts += 1
            replica.start()
        elif not any(other.alive or other.process is None for other in self._replicas):
            raise EngineError(
                f"the engine died: none of {len(self._replicas)} replicas is left; the last: {said}",
                hint="its own words are above; an out-of-memory wants a smaller max_num_seqs",
            ) from why

    def _abandon(self) -> None:
        """Leave nothing behind in the replicas, whatever ended the run."""
        if self._dealt:
            self._run += 1
            for replica in self._replicas:
                replica.take_back()
                if replica.state == "up":
                    replica.say(Abandon(self._run))
        self._dealt.clear()
        self._returned.clear()


class _Replica:
    """A process from the parent's side. `gone` has none; `up` can be asked."""

    def __init__(self, number: int, make: MakeEngine, place: DeviceSlice) -> None:
        self.number, self._make, self._place = number, make, place
        self.state = "gone"
        self.restarts = 0
        self.heard = 0.0
        self.waiting: deque[Request] = deque()  # dealt to it, and not sent yet
        self.asked: dict[str, Request] = {}
        self.process: Any = None
        self.pipe: Any = None

    @property
    def alive(self) -> bool:
        return self.state != "gone"

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 1)

    def start(self) -> None:
        # not a fork: the parent has threads, and may have used the device
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, os.getpid(), self._place), name=f"vsteer-replica-{self.number}"
        )
        self.process.start()
        theirs.close()
        self.state = "starting"
        self.heard = self.started = time.monotonic()
        self.say(self._make)

    def load(self, table: Load) -> None:
        self.state = "loading"
        self.say(table)

    def busy(self) -> int:
        return len(self.asked) + len(self.waiting)

    def hungry(self, window: int) -> bool:
        return self.state == "up" and self.busy() < window

    def ask(self, run: int, window: int) -> None:
        """Send what waits, up to the window."""
        while (room := min(window - len(self.asked), REQUESTS_IN_A_MESSAGE, len(self.waiting))) > 0:
            if not self.asked:
                self.heard = time.monotonic()
            some = tuple(self.waiting.popleft() for _ in range(room))
            self.asked.update((request.id, request) for request in some)
            self.say(Ask(run, some))

    def take_back(self) -> list[Request]:
        left = [*self.asked.values(), *self.waiting]
        self.asked.clear()
        self.waiting.clear()
        return left

    def say(self, message: Any) -> None:
        """To one that is gone, nothing: that is heard of soon enough."""
        with contextlib.suppress(OSError):
            self.pipe.send(message)

    def kill(self) -> None:
        """With all that it started."""
        if not self.alive:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        # it may not lead a group yet
        self.process.kill()

    def end(self) -> None:
        self.kill()
        self.process.join()
        self.pipe.close()
        self.state = "gone"
