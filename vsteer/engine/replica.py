"""One replica: a process of its own that hosts one engine, and the messages over its pipe.

The engine never waits for requests while some are under way: where none comes, the round ends, what is under
way finishes, and the next request begins another round.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from multiprocessing.connection import Connection
from typing import Any, cast

from vsteer.engine.device_slices import DeviceSlice
from vsteer.engine.worker.parent import end_with
from vsteer.errors import EngineError, SteeringFault, VsteerError
from vsteer.protocol import Engine, Request, Result, Steering, Vectors

# How long an engine with requests under way waits for more of them.
PATIENCE_SECONDS = 0.05
# The most results in one message, and as many may wait for the pipe, since captured ones are large.
RESULTS = 32
# How long an engine with a dead process may take to report why it died.
LAST_REPORT_SECONDS = 3

MakeEngine = Callable[[], Engine]


@dataclass(frozen=True)
class Load:
    vectors: Vectors
    steerings: tuple[Steering, ...]


@dataclass(frozen=True)
class Work:
    """Requests of a run. Its number keeps them apart from those of an abandoned run."""

    run: int
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Abandon:
    """Drop what belongs to an earlier run than this."""

    run: int


@dataclass(frozen=True)
class Stop:
    pass


@dataclass(frozen=True)
class Loaded:
    pass


@dataclass(frozen=True)
class Answers:
    run: int
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Failed:
    """The replica's last message."""

    error: BaseException
    exit_codes: tuple[int | None, ...] = ()


Message = Load | Work | Stop


def serve(connection: Connection[Any, Any], parent: int, devices: DeviceSlice) -> None:
    """The process's whole life. The first message is the function that makes the engine."""
    # In a session of its own Ctrl-C does not reach it, and it can be killed together with what it starts.
    os.setsid()
    end_with(parent)
    devices.occupy()
    try:
        make: MakeEngine = connection.recv()
        engine = make()
        connection.send(engine.info)
    except BaseException as error:
        connection.send(Failed(portable(error)))
        return
    _Serving(connection, engine).until_stopped()


def portable(error: BaseException) -> BaseException:
    """The error itself if it can be pickled, else its text; either with its traceback."""
    text = "".join(traceback.format_exception(error))
    try:
        same: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"in a replica's process:\n{text}")
    same.add_note(f"in a replica's process:\n{text}")
    return same


class _Serving:
    """The engine in the main thread, a thread that reads the pipe and one that writes it."""

    def __init__(self, connection: Connection[Any, Any], engine: Engine) -> None:
        self.engine = engine
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.put_back: Message | None = None
        self.run = 0  # the newest run of which a message came
        self._connection = connection
        self._outbox: queue.Queue[Any] = queue.Queue(RESULTS)
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()
        self._over = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def until_stopped(self) -> None:
        try:
            while not isinstance(message := self._next(), Stop):
                if isinstance(message, Load):
                    self.engine.load(message.vectors, message.steerings)
                    self._outbox.put(Loaded())
                elif message.run == self.run:
                    self._round(message)
        except BaseException as error:
            self._outbox.put(Failed(portable(self._death(error)), self._exit_codes()))
        self._over.set()
        self._outbox.put(None)
        self._writer.join()
        self.engine.close()

    def _next(self) -> Message:
        message, self.put_back = self.put_back, None
        return message or self.inbox.get()

    def _round(self, work: Work) -> None:
        """Requests through the engine until no more come."""
        feed = _Feed(self, work)
        # closing the generator drops what is under way
        answers = cast("Generator[Result, None, None]", self.engine.run(feed))
        with contextlib.closing(answers):
            for result in answers:
                feed.under_way -= 1
                if self.run != work.run:
                    return
                self._outbox.put(Answers(work.run, (result,)))

    def _exit_codes(self) -> tuple[int | None, ...]:
        return tuple(self.engine.exit_codes())

    def _death(self, error: BaseException) -> BaseException:
        """One kind of error for the many ways in which an engine fails whose process is gone."""
        gone = any(code is not None for code in self._exit_codes())
        if isinstance(error, VsteerError | SteeringFault) or not gone:
            return error
        return EngineError(f"the engine died: {error!r}", hint="its own message is above")

    def _watch(self) -> None:
        """End the wait of vLLM's client for an engine core that was killed, which would never end."""
        while all(code is None for code in self._exit_codes()):
            if self._over.wait(1):
                return
        # an engine that can still report why has done so by then
        if not self._over.wait(LAST_REPORT_SECONDS):
            codes = self._exit_codes()
            error = EngineError(
                f"the engine died: its processes ended with exit codes {list(codes)}",
                hint="its own message is above, if it left one; -9 is a kill, as when memory runs out",
            )
            self._outbox.put(Failed(error, codes))

    def _read(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                if isinstance(message, Work | Abandon):
                    self.run = message.run
                if not isinstance(message, Abandon):
                    self.inbox.put(message)
        except (EOFError, OSError):
            self.run += 1
            self.inbox.put(Stop())

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                messages = [self._outbox.get()]
                with contextlib.suppress(queue.Empty):
                    while len(messages) < RESULTS:
                        messages.append(self._outbox.get_nowait())
                for message in merged(messages):
                    if message is None:
                        return
                    self._connection.send(message)


def merged(messages: Iterable[Any]) -> Iterator[Any]:
    """The messages, with results that follow each other in one, since sending costs more than they do."""
    for run, group in groupby(messages, lambda one: one.run if isinstance(one, Answers) else None):
        if run is None:
            yield from group
        else:
            yield Answers(run, tuple(result for one in group for result in one.results))


class _Feed(Iterator[Request]):
    """The requests of one round."""

    def __init__(self, serving: _Serving, work: Work) -> None:
        self.under_way = 0
        self._serving, self._run = serving, work.run
        self._requests = deque(work.requests)
        self._over = False

    def __next__(self) -> Request:
        while not self._requests and not self._over:
            self._wait()
        if self._over or self._serving.run != self._run:
            self._over = True
            raise StopIteration
        self.under_way += 1
        return self._requests.popleft()

    def _wait(self) -> None:
        if not self.under_way:
            self._over = True
            return
        try:
            message = self._serving.inbox.get(timeout=PATIENCE_SECONDS)
        except queue.Empty:
            self._over = True
            return
        if isinstance(message, Work) and message.run == self._run:
            self._requests.extend(message.requests)
        else:
            self._serving.put_back = message
            self._over = True
