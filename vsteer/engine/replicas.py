"""Several engines on one machine behind one: each in a process of its own, on its own devices.

Requests are dealt by prompt, so that a prompt's configurations meet in one prefix cache. A replica that dies
is started again, and the requests that it left unanswered go to any that is up, so that each has one result.
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
from vsteer.engine.replica import Abandon, Answers, Failed, Load, Loaded, MakeEngine, Stop, Work, serve
from vsteer.errors import EngineError, SteeringFault
from vsteer.protocol import Engine, EngineInfo, Request, Result, Steering, Vectors

# How often one replica is started again.
RESTARTS = 3
# A replica that has requests under way and sends nothing for so long hangs.
STALL_SECONDS = 600.0
# So many requests of one prompt may wait for one replica; the rest is dealt anew, lest the others idle.
LONGEST_WAIT = 4096
REQUESTS_IN_A_MESSAGE = 256
CLOSE_SECONDS = 5.0


class OnEvent(Protocol):
    """Is called with what happens to replicas: the event's name and its fields."""

    def __call__(self, event: str, **fields: Any) -> None: ...


def window(max_num_seqs: int) -> int:
    """How many requests are under way in one replica. Its VllmEngine takes 2 * max_num_seqs + 64 of them, and
    more must wait there, or its batch runs dry while results and requests travel."""
    return 2 * (2 * max_num_seqs + 64) + 256


class Replicas(Engine):
    """An engine made of engines. `make` starts one in its replica's process, so it must be picklable."""

    def __init__(
        self,
        make: MakeEngine,
        slices: Sequence[DeviceSlice],
        *,
        window: int,
        one_first: bool = False,
        on_event: OnEvent = lambda event, **fields: None,
    ) -> None:
        """With `one_first` the others start when the first is up, so that they find what it compiled."""
        self.steps = 0
        self._on_event, self._window = on_event, window
        self._info: EngineInfo | None = None
        self._table: Load | None = None
        self._run = 0
        self._dealt: set[str] = set()  # taken from the run and not answered
        self._returned: deque[Request] = deque()  # those of them that a replica left behind
        self._group: tuple[tuple[int, ...], _Replica] | None = None
        self._codes: list[int | None] = []
        self._killed = False
        self._replicas = [_Replica(number, make, devices) for number, devices in enumerate(slices)]
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
                yield from self._receive()
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
            replica.send(Abandon(self._run + 1))
            replica.send(Stop())
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
                replica.send_work(self._run, self._window)
        return more

    def _replica_for(self, request: Request) -> _Replica:
        """The last request's replica, where this prompt is the same or continues it; else the least busy."""
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
            deque(self._receive(), maxlen=0)

    def _receive(self) -> Iterator[Result]:
        """The results that come within a second, after a look at which replicas live."""
        alive = [replica for replica in self._replicas if replica.alive]
        handles = {replica.process.sentinel: replica for replica in alive}
        pipes: dict[Any, _Replica] = {replica.pipe: replica for replica in alive}
        ready = {(pipes | handles)[handle] for handle in wait([*pipes, *handles], timeout=1)}
        for replica in alive:
            if replica in ready:
                yield from self._attend(replica)
            elif replica.under_way and time.monotonic() - replica.last_message > STALL_SECONDS:
                self._bury(replica, EngineError("it hangs", hint="its requests are done again"))

    def _attend(self, replica: _Replica) -> list[Result]:
        with contextlib.suppress(EOFError, OSError):
            # a process that is gone may have left messages
            if replica.pipe.poll():
                message = replica.pipe.recv()
                replica.last_message = time.monotonic()
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
                # an engine that never worked fails again, and what is not the engine's fault must be seen
                never_up = replica.state != "up" and not replica.restarts
                if never_up or not isinstance(error, EngineError):
                    raise error
                self._bury(replica, error, codes)
        return []

    def _answered(self, replica: _Replica, result: Result) -> Result:
        if replica.under_way.pop(result.id, None) is None:
            raise SteeringFault(f"a replica answered {result.id!r}, which it was not given")
        self._dealt.remove(result.id)
        self.steps += 1
        return result

    def _bury(
        self, replica: _Replica, why: EngineError | None = None, codes: tuple[int | None, ...] = ()
    ) -> None:
        """Take back what it left unanswered, and start it again. `codes` are its engine's, if it sent any."""
        replica.end()
        if why is None:
            # with a reason, the exit code only shows that this call killed it
            codes = (replica.process.exitcode,)
        self._codes += codes
        left = replica.take_back()
        self._returned.extend(left)
        again = replica.restarts < RESTARTS and not self._killed
        reason = why.message if why else f"its process ended with exit code {codes[0]}"
        self._on_event(
            "replica_died",
            replica=replica.number,
            error=reason,
            exit_codes=list(codes),
            given_back=len(left),
            restart=replica.restarts + 1 if again else None,
        )
        if again:
            replica.restarts += 1
            replica.start()
        elif not any(other.alive or other.process is None for other in self._replicas):
            raise EngineError(
                f"the engine died: none of {len(self._replicas)} replicas is left; the last: {reason}",
                hint="its own message is above; if memory ran out, give a smaller max_num_seqs",
            ) from why

    def _abandon(self) -> None:
        """Leave nothing behind in the replicas, however the run ended."""
        if self._dealt:
            self._run += 1
            for replica in self._replicas:
                replica.take_back()
                if replica.state == "up":
                    replica.send(Abandon(self._run))
        self._dealt.clear()
        self._returned.clear()


class _Replica:
    """A process from the parent's side. In the state `gone` there is none; when `up` it takes requests."""

    def __init__(self, number: int, make: MakeEngine, devices: DeviceSlice) -> None:
        self.number, self._make, self._devices = number, make, devices
        self.state = "gone"
        self.restarts = 0
        self.last_message = 0.0
        self.waiting: deque[Request] = deque()  # dealt to it, and not sent yet
        self.under_way: dict[str, Request] = {}
        self.process: Any = None
        self.pipe: Any = None

    @property
    def alive(self) -> bool:
        return self.state != "gone"

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 1)

    def start(self) -> None:
        # a fork would not do, since the parent has threads and may have used the device
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, os.getpid(), self._devices), name=f"vsteer-replica-{self.number}"
        )
        self.process.start()
        theirs.close()
        self.state = "starting"
        self.last_message = self.started = time.monotonic()
        self.send(self._make)

    def load(self, table: Load) -> None:
        self.state = "loading"
        self.send(table)

    def busy(self) -> int:
        return len(self.under_way) + len(self.waiting)

    def hungry(self, window: int) -> bool:
        return self.state == "up" and self.busy() < window

    def send_work(self, run: int, window: int) -> None:
        """Send what waits, up to the window."""
        while (room := min(window - len(self.under_way), REQUESTS_IN_A_MESSAGE, len(self.waiting))) > 0:
            if not self.under_way:
                self.last_message = time.monotonic()
            some = tuple(self.waiting.popleft() for _ in range(room))
            self.under_way.update((request.id, request) for request in some)
            self.send(Work(run, some))

    def take_back(self) -> list[Request]:
        left = [*self.under_way.values(), *self.waiting]
        self.under_way.clear()
        self.waiting.clear()
        return left

    def send(self, message: Any) -> None:
        """Send a message, unless the process is gone, which `_receive` finds soon enough."""
        with contextlib.suppress(OSError):
            self.pipe.send(message)

    def kill(self) -> None:
        """Kill it and all that it started."""
        if not self.alive:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        # right after its start it does not lead a group yet
        self.process.kill()

    def end(self) -> None:
        self.kill()
        self.process.join()
        self.pipe.close()
        self.state = "gone"
