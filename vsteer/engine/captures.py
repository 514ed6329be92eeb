"""Captures as the driver sees them: admitted while a step has slots for them, then joined from all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsteer.engine.worker.capture import CaptureSpec
from vsteer.errors import SteeringFault
from vsteer.protocol import EngineInfo, Request


class CaptureAdmission:
    """Keeps the captured positions under way within `slots`, since one step might process all of them."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._under_way = 0

    def refusal(self, request: Request) -> str | None:
        """Why the request could not even capture alone, or None."""
        if len(request.capture) <= self.slots:
            return None
        return f"{len(request.capture)} positions to capture, the engine has room for {self.slots}"

    def has_room(self, request: Request) -> bool:
        alone = not request.capture or not self._under_way
        return alone or self._under_way + len(request.capture) <= self.slots

    def begin(self, request: Request) -> None:
        self._under_way += len(request.capture)

    def end(self, request: Request) -> None:
        self._under_way -= len(request.capture)

    def must_collect(self, finished: Iterable[Request]) -> bool:
        """Whether the streams of finished requests take up too much of the workers' memory to wait there."""
        return sum(len(request.capture) for request in finished) >= self.slots > 0


def joined_streams(
    specs: Sequence[CaptureSpec], answers: Iterable[dict[str, Any]], info: EngineInfo
) -> dict[int, NDArray[np.float32]]:
    """The captured streams by key, [position, layer, hidden]: each rank answers for its own layers."""
    shape = (info.layers, info.hidden_size)
    streams = {spec.key: np.full((len(spec.positions), *shape), np.nan, np.float32) for spec in specs}
    for answer in answers:
        layers = answer["layers"]
        if not layers:
            continue
        rows = np.frombuffer(answer["streams"], np.float32).reshape(-1, len(layers), info.hidden_size)
        at = 0
        for spec, positions in zip(specs, answer["positions"], strict=True):
            if tuple(positions) != spec.positions:
                raise SteeringFault(f"captured the positions {positions} instead of {spec.positions}")
            streams[spec.key][:, layers] = rows[at : at + len(positions)]
            at += len(positions)
    if any(np.isnan(stream).any() for stream in streams.values()):
        raise SteeringFault("no worker captured some of the layers")
    return streams
