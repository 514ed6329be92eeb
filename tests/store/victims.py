"""What runs in processes that the tests kill: deterministic rows, and a compaction that dies at a step."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.store.makers import Record, error_row, row, row_id, text_row, write_plan
from vsteer.store.ids import pack
from vsteer.store.store import open_store


def planned_row(number: int) -> Record:
    """A third of the rows fail at their first attempt, and every tenth is a text."""
    return text_row(number) if number % 10 == 0 else row(number)


def run(folder: Path, planned: int, pause: float) -> None:
    """What `vsteer run` does, again and again after each kill: go on, retry errors, compact."""
    with open_store(folder, shard_rows=40, shard_seconds=0.1) as store:
        write_plan(store, planned)
        if store.session % 4 == 0:
            store.compact()
        done = store.done()
        good = set(done.good)
        for number in range(planned):
            if row_id(number) in good:
                continue
            attempt = 1 + int(done.attempts(pack([row_id(number)]))[0])
            if attempt == 1 and number % 3 == 0:
                store.append(error_row(number, run_session=store.session))
            else:
                store.append({**planned_row(number), "attempt": attempt, "run_session": store.session})
            time.sleep(pause)
        store.compact()


def run_on(folder: Path, planned: int, pause: float) -> None:
    """Go on where the last start stopped, with the store's own settings."""
    with open_store(folder) as store:
        done = set(store.done().good)
        for number in range(planned):
            if row_id(number) not in done:
                store.append(planned_row(number))
                time.sleep(pause)
        time.sleep(3600)


def run_and_compact(folder: Path, shards: int) -> None:
    """Rows that come fast, and a compaction after every fourth shard."""
    with open_store(folder, shard_rows=10) as store:
        for number in range(10 * shards):
            store.append(planned_row(number))
            if number % 40 == 39:
                store.compact()
            time.sleep(0.001)


def compact_until(folder: Path, step: int) -> None:
    """Open and compact, and die by SIGKILL just before the given change to the file system."""
    seen = 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return call

    store = open_store(folder)
    os.fsync = lambda handle: None  # type: ignore[assignment]  # slow, and only a power cut would show it
    for name in ("rename", "replace", "fsync", "unlink", "mkdir", "rmdir"):
        setattr(os, name, deadly(getattr(os, name)))
    store.compact()
    os._exit(0)
