"""Streams that a server's engine captures, for one request at a time, which has all slots to itself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vsteer.engine.captures import joined_streams
from vsteer.engine.worker.capture import CaptureSpec
from vsteer.protocol import EngineInfo
from vsteer.serve.served_table import Rpc

T = TypeVar("T")


class Captures:
    """`rpc` asks every worker by the name of a method."""

    def __init__(self, rpc: Rpc, info: EngineInfo) -> None:
        self._rpc, self._info = rpc, info
        self._numbers = itertools.count(1)
        self._alone = asyncio.Lock()

    async def during(
        self, positions: Iterable[int], ask: Callable[[dict[str, Any]], Awaitable[T]]
    ) -> tuple[T, NDArray[np.float32]]:
        """The answer to a request with these `extra_args`, and its streams, [position, layer, hidden]."""
        async with self._alone:
            spec = CaptureSpec(next(self._numbers), tuple(positions))
            try:
                answer = await ask(spec.as_extra_args())
            finally:
                # a client that went away leaves nothing in the workers either
                streams = await asyncio.shield(self._rpc("vsteer_captured", [spec.key]))
        return answer, joined_streams([spec], streams, self._info)[spec.key]
