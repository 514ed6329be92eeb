"""A watch over an engine from another thread: it notices when nothing comes back for a long time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from vsteer.protocol import Engine

STALL_SECONDS = 600.0


@contextlib.contextmanager
def watched(engine: Engine, on_stall: Callable[[Engine], None]) -> Iterator[None]:
    """Call `on_stall` once when requests are under way and none moves."""
    over = threading.Event()

    def watch() -> None:
        seen, since = engine.steps, time.monotonic()
        while not over.wait(5):
            if engine.steps != seen or not engine.under_way():
                seen, since = engine.steps, time.monotonic()
            elif time.monotonic() - since > STALL_SECONDS:
                on_stall(engine)
                return

    thread = threading.Thread(target=watch, name="vsteer-stall", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
