"""Which tokens of a step are captured, and what was captured for every request so far. Pure numpy.

A request names absolute positions of its prompt. Where a step processes one, the layers copy that token's
stream into a slot of a fixed buffer; the slots are emptied before the next step. A position that is processed
again after a preemption is captured again, to the same values.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsteer.errors import SteeringFault

# It stands beside step.EXTRA_ARG under SamplingParams.extra_args.
EXTRA_ARG = "vsteer_capture"


@dataclass(frozen=True)
class CaptureSpec:
    """What a request captures, as it travels in its `extra_args`."""

    key: int  # the driver's own number of the request
    positions: tuple[int, ...]  # increasing

    def as_extra_args(self) -> dict[str, dict[str, Any]]:
        return {EXTRA_ARG: {"key": self.key, "positions": list(self.positions)}}

    @classmethod
    def from_extra_args(cls, extra_args: Mapping[str, Any] | None) -> CaptureSpec | None:
        """What the request captures, None where it captures nothing. A malformed spec is an error."""
        spec = (extra_args or {}).get(EXTRA_ARG)
        if spec is None:
            return None
        try:
            found = cls(spec["key"], tuple(spec["positions"]))
            sound = (
                all(type(n) is int for n in (found.key, *found.positions))
                and found.positions != ()
                and found.positions[0] >= 0
                and all(a < b for a, b in zip(found.positions, found.positions[1:], strict=False))
            )
        except (TypeError, KeyError):
            sound = False
        if not sound:
            raise SteeringFault(f"malformed capture in a request's extra_args: {spec!r}")
        return found


class CaptureTable:
    """The requests that capture, the slots of the step under way, and the streams taken from them."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._specs: dict[str, CaptureSpec] = {}
        # whose position sits in each slot of the step under way
        self._in_slots: list[tuple[int, int]] = []
        # key -> position -> [layer, hidden]
        self._taken: dict[int, dict[int, NDArray[np.float32]]] = {}

    @property
    def used(self) -> int:
        """How many slots the step under way fills."""
        return len(self._in_slots)

    def add(self, request_id: str, extra_args: Mapping[str, Any] | None) -> None:
        spec = CaptureSpec.from_extra_args(extra_args)
        if spec is not None:
            if len(spec.positions) > self.slots:
                raise SteeringFault(f"{len(spec.positions)} captures do not fit {self.slots} slots")
            self._specs[request_id] = spec

    def remove(self, request_id: str) -> None:
        self._specs.pop(request_id, None)

    def keep_only(self, alive: Container[str]) -> None:
        for request_id in [id_ for id_ in self._specs if id_ not in alive]:
            self.remove(request_id)

    def choose(
        self,
        request_ids: Sequence[str],
        computed: NDArray[np.integer[Any]],
        scheduled: NDArray[np.integer[Any]],
    ) -> list[int]:
        """The tokens of this step that are captured, as places in the step, one a slot.

        The arguments are those of `StepTable.fill`.
        """
        if self._in_slots:
            raise SteeringFault("a step began before what the step before captured was taken")
        chosen: list[int] = []
        if not self._specs:
            return chosen
        at = 0
        for index, request_id in enumerate(request_ids):
            first, count = int(computed[index]), int(scheduled[index])
            spec = self._specs.get(request_id)
            for position in spec.positions if spec else ():
                if spec and first <= position < first + count:
                    chosen.append(at + position - first)
                    self._in_slots.append((spec.key, position))
            at += count
        if len(chosen) > self.slots:
            raise SteeringFault(f"a step captures {len(chosen)} tokens and has {self.slots} slots")
        return chosen

    def take(self, streams: NDArray[np.float32]) -> None:
        """Keep what the step under way captured: [layer, slot, hidden], the used slots alone."""
        if not np.isfinite(streams).all():
            raise SteeringFault(
                "a captured stream is not finite: a layer did not write it, or the model overflows"
            )
        for slot, (key, position) in enumerate(self._in_slots):
            self._taken.setdefault(key, {})[position] = streams[:, slot].copy()
        self._in_slots = []

    def collect(self, keys: Sequence[int]) -> list[dict[int, NDArray[np.float32]]]:
        """What was captured for each key, by position; it is forgotten then."""
        return [self._taken.pop(key, {}) for key in keys]
