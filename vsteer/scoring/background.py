"""An event loop in a thread of its own: whatever waits for the network there can be ended at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
# How long the end may take; what has not ended then is left to the end of the process.
END_SECONDS = 2.0


class Background:
    def __init__(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """`last` is done at the end, once everything else there was cancelled."""
        self._last = last

    def __enter__(self) -> Self:
        self._loop = _Loop()
        self._thread = Thread(target=self._loop.run_forever, name="vsteer-judge", daemon=True)
        self._thread.start()
        return self

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(TimeoutError):
            self.start(self._end()).result(END_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(END_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._last()


class _Loop(asyncio.SelectorEventLoop):
    async def getaddrinfo(self, *where: Any, **how: Any) -> Any:
        """Look a name up in a thread that nothing waits for: it can take half a minute and can't be ended."""
        found: Future[Any] = Future()
        found.set_running_or_notify_cancel()

        def look_up() -> None:
            try:
                found.set_result(socket.getaddrinfo(*where, **how))
            except BaseException as error:
                found.set_exception(error)

        Thread(target=look_up, name="vsteer-name", daemon=True).start()
        return await asyncio.wrap_future(found, loop=self)
