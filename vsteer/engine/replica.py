"""One replica: a process of its own that hosts one engine, and what is said over its pipe.

Its engine is never left waiting for requests while some are under way: where none comes, the round ends, what
is under way finishes, and the next request begins another round.
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
from vsteer.engine.worker.plugin import _end_with_parent
from vsteer.errors import EngineError, SteeringFault, VsteerError
from vsteer.protocol import Engine, Request, Result, Steering, Vectors

# How long an engine with requests under way waits for more of them.
PATIENCE_SECONDS = 0.05
# Results in one message, and as many may wait for the pipe: captured ones are large.
RESULTS = 32
# How long an engine with a dead process may take to say what happened.
LAST_WORDS_SECONDS = 3

MakeEngine = Callable[[], Engine]


@dataclass(frozen=True)
class Load:
    vectors: Vectors
    steerings: tuple[Steering, ...]


@dataclass(frozen=True)
class Ask:
    """Requests of a run, which is told by its number so that nothing of an abandoned one is mistaken."""

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
    """The replica's last word."""

    error: BaseException
    exit_codes: tuple[int | None, ...] = ()


Message = Load | Ask | Stop


def serve(connection: Connection[Any, Any], parent: int, place: DeviceSlice) -> None:
    """The process's whole life. The first message is what makes the engine."""
    # a session of its own: Ctrl-C goes to the parent alone, and what the engine starts can be ended with it
    os.setsid()
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    place.occupy()
    try:
        make: MakeEngine = connection.recv()
        engine = make()
        connection.send(engine.info)
    except BaseException as error:
        connection.send(Failed(portable(error)))
        return
    _Serving(connection, engine).until_stopped()


def portable(error: BaseException) -> BaseException:
    """The error itself where it survives the way, its words otherwise; with where it was raised."""
    said = "".join(traceback.format_exception(error))
    try:
        same: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"in a replica's process:\n{said}")
    same.add_note(f"in a replica's process:\n{said}")
    return same


class _Serving:
    """The engine in the main thread, a thread that reads the pipe and one that writes it."""

    def __init__(self, connection: Connection[Any, Any], engine: Engine) -> None:
        self.engine = engine
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.put_back: Message | None = None
        self.run = 0  # the newest that was heard of
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

    def _round(self, asked: Ask) -> None:
        """Requests through the engine until no more come."""
        feed = _Feed(self, asked)
        # left early, a generator drops what is under way when it is closed
        answers = cast("Generator[Result, None, None]", self.engine.run(feed))
        with contextlib.closing(answers):
            for result in answers:
                feed.under_way -= 1
                if self.run != asked.run:
                    return
                self._outbox.put(Answers(asked.run, (result,)))

    def _exit_codes(self) -> tuple[int | None, ...]:
        return tuple(self.engine.exit_codes())

    def _death(self, error: BaseException) -> BaseException:
        """An engine whose process is gone fails in many ways, and they are all this one."""
        gone = any(code is not None for code in self._exit_codes())
        if isinstance(error, VsteerError | SteeringFault) or not gone:
            return error
        return EngineError(f"the engine died: {error!r}", hint="its own words are above")

    def _watch(self) -> None:
        """vLLM's client waits for ever for an engine core that was killed: it sends no last word."""
        while all(code is None for code in self._exit_codes()):
            if self._over.wait(1):
                return
        # one that could still say why has said it by then
        if not self._over.wait(LAST_WORDS_SECONDS):
            codes = self._exit_codes()
            error = EngineError(
                f"the engine died: its processes ended with exit codes {list(codes)}",
                hint="its own words are above, if there are any; -9 is a kill, as when memory is out",
            )
            self._outbox.put(Failed(error, codes))

    def _read(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                if isinstance(message, Ask | Abandon):
                    self.run = message.run
                if not isinstance(message, Abandon):
                    self.inbox.put(message)
        except (EOFError, OSError):
            self.run += 1
            self.inbox.put(Stop())

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                said = [self._outbox.get()]
                with contextlib.suppress(queue.Empty):
                    while len(said) < RESULTS:
                        said.append(self._outbox.get_nowait())
                for message in merged(said):
                    if message is None:
                        return
                    self._connection.send(message)


def merged(said: Iterable[Any]) -> Iterator[Any]:
    """Results that wait for the pipe as one message: one by one they would cost more than they are."""
    for run, group in groupby(said, lambda one: one.run if isinstance(one, Answers) else None):
        if run is None:
            yield from group
        else:
            yield Answers(run, tuple(result for one in group for result in one.results))


class _Feed(Iterator[Request]):
    """The requests of one round."""

    def __init__(self, serving: _Serving, asked: Ask) -> None:
        self.under_way = 0
        self._serving, self._run = serving, asked.run
        self._requests = deque(asked.requests)
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
        if isinstance(message, Ask) and message.run == self._run:
            self._requests.extend(message.requests)
        else:
            self._serving.put_back = message
            self._over = True
