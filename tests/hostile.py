"""What a hostile file does to whatever reads it: the time, the memory, and the error that it ends with."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vsteer.bench.memory import most_held
from vsteer.errors import VsteerError

T = TypeVar("T")

SECONDS, BYTES, CHARACTERS = 10, 2 * 10**9, 600


@dataclass(frozen=True)
class Outcome:
    seconds: float
    peak: int  # the most memory, in bytes, that of the process before it included
    message: str = ""  # the error's, as the terminal shows it; empty: it was read
    fault: str = ""  # a traceback, or how the process ended

    def __post_init__(self) -> None:
        assert not self.fault, self.fault
        assert self.seconds < SECONDS
        assert self.peak < BYTES
        assert len(self.message) <= CHARACTERS, self.message
        # a terminal can show it
        self.message.encode()
        assert not self.message or "\nhint: " in self.message


def in_fresh_process(work: Callable[..., T], *arguments: object) -> T:
    """What `work` gives in a process of its own, so that another test's peak of memory doesn't count."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(work, *arguments).result()


def outcome(read: Callable[[], object]) -> Outcome:
    """Read in a process of its own, which is ended where it takes too long or asks for too much memory."""
    here, there = os.pipe()
    child = os.fork()
    if not child:
        os.close(here)
        os.write(there, json.dumps(_tried(read)).encode()[:60_000])
        os._exit(0)
    os.close(there)
    with os.fdopen(here) as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if not told:
        return Outcome(0, 0, fault=f"the reader ended with status {status}: {signal.strsignal(status & 127)}")
    return Outcome(**json.loads(told))


def _tried(read: Callable[[], object]) -> dict[str, object]:
    # what waits is ended, too; the time that counts is the processor's, since tests run beside each other
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(10 * SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS + 1, SECONDS + 1))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    sys.setrecursionlimit(1000)
    before, result = time.process_time(), {"message": "", "fault": ""}
    try:
        read()
    except VsteerError as error:
        result["message"] = str(error)
    except BaseException:
        result["fault"] = traceback.format_exc()[-3000:]
    return {"seconds": time.process_time() - before, "peak": most_held(), **result}


def summary(what: str, found: Sequence[Outcome]) -> None:
    """What a run with -s shows."""
    longest, most = max(one.seconds for one in found), max(one.peak for one in found)
    read = sum(not one.message for one in found)
    words = max(len(one.message) for one in found)
    print(
        f"{what}, {read} of them read: at most {longest:.2f} s, {most / 2**20:.0f} MiB and {words} characters"
    )


def mutated(content: bytes, r: random.Random, within: int | None = None) -> bytes:
    """A file cut, or with a byte changed, replaced by what readers trip over, or taken out near its start."""
    changed = bytearray(content)
    at = r.randrange(min(len(content), within or len(content)))
    match r.randrange(4):
        case 0:
            del changed[at:]
        case 1:
            changed[at] = r.randrange(256)
        case 2:
            changed[at : at + 1] = r.choice([b"[" * 5000, b"9" * 5000, rb"\ud800", b"\0", b'"', b"-1"])
        case _:
            del changed[at : at + r.randint(1, 20)]
    return bytes(changed)
