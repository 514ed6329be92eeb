"""The workers' records of how far requests were steered, asked for together and each once.

While an answer is under way, whoever finishes waits for the next question, so that many requests cost the
engine few. A request that was given up is asked for too, since a record stays until it is collected.
"""

from __future__ import annotations

import asyncio

from vsteer.engine.answers import merged_records
from vsteer.serve.served_table import Rpc


class Records:
    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._wanted: dict[int, asyncio.Future[list[int]]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def collect(self, key: int) -> list[int]:
        """The first position that was processed under the request's key, and the one after the last."""
        return await self._want(key)

    def forget(self, key: int) -> None:
        """Let the workers drop the record of a request that was given up."""
        # an engine that is dead has nothing to forget
        self._want(key).add_done_callback(lambda done: done.cancelled() or done.exception())

    def _want(self, key: int) -> asyncio.Future[list[int]]:
        future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._wanted[key] = future
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        return future

    async def _ask(self) -> None:
        # those that finish in one step come one after another
        await asyncio.sleep(0)
        while self._wanted:
            wanted, self._wanted = self._wanted, {}
            keys = list(wanted)
            try:
                records = merged_records(keys, await self._rpc("vsteer_collect", keys))
            except Exception as error:
                for future in wanted.values():
                    if not future.done():
                        future.set_exception(error)
                continue
            for key, future in wanted.items():
                if not future.done():
                    future.set_result(records[key])
