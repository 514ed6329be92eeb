"""How a person stops a run: the first Ctrl-C (or SIGTERM) drains it, the second one ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any


class Interrupt:
    """Catches both signals while it is entered, in the main thread; no other thread can."""

    def __init__(self, on_first: Callable[[str], None]) -> None:
        self.stopping = False
        self._on_first = on_first
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        self._on_first("stopping: what is under way is finished and written (again to stop at once)")
