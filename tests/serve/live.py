"""A real server on a port of its own, in a thread of the test's process, where tests reach its engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from vsteer.serve.server import Running, answering, listen
from vsteer.serve.settings import Settings

T = TypeVar("T")
START_SECONDS = 300


@dataclass
class Live:
    url: str
    server: Running
    loop: asyncio.AbstractEventLoop

    def do(self, work: Coroutine[Any, Any, T], seconds: float = 60) -> T:
        """In the server's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def ask(self, method: str, *args: Any) -> list[Any]:
        """Every worker, by the name of a method."""
        return self.do(self.server.client.rpc(method, *args))


@contextmanager
def live_server(settings: Settings) -> Iterator[Live]:
    made: list[Live] = []
    failed: list[BaseException] = []
    ready, over = threading.Event(), threading.Event()

    async def main() -> None:
        with listen("127.0.0.1", 0) as sock:
            async with answering(settings, sock) as server:
                url = f"http://127.0.0.1:{sock.getsockname()[1]}"
                made.append(Live(url, server, asyncio.get_running_loop()))
                ready.set()
                await asyncio.to_thread(over.wait)

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="live-server")
    thread.start()
    try:
        assert ready.wait(START_SECONDS)
        if failed:
            raise failed[0]
        yield made[0]
    finally:
        over.set()
        thread.join(60)
