"""Which cell steers each token of one engine step, and what was steered so far. Pure numpy.

Both model runners fill the table through `StepTable.fill`. Positions are absolute, counted from
the original prompt's first token, so chunked prefill, preemption and resumption need no case of
their own: a token's cell depends on its position and the request's span alone.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsteer.errors import SteeringFault
from vsteer.protocol import OPEN_END

# The one key under SamplingParams.extra_args that is ours.
EXTRA_ARG = "vsteer"
NOT_SEEN = -1


@dataclass(frozen=True)
class CellSpan:
    """How a request steers, as it travels in its `extra_args`."""

    key: int  # the driver's own number of the request
    cell: int
    fingerprint: str
    start: int
    end: int

    def as_extra_args(self) -> dict[str, dict[str, int | str]]:
        return {EXTRA_ARG: dict(self.__dict__)}

    @classmethod
    def from_extra_args(cls, extra_args: Mapping[str, Any] | None) -> CellSpan | None:
        """The request's spec, None where it is unsteered. A malformed one is an error."""
        spec = (extra_args or {}).get(EXTRA_ARG)
        if spec is None:
            return None
        try:
            span = cls(**spec)
            numbers = (span.key, span.cell, span.start, span.end)
            sound = (
                all(type(n) is int for n in numbers)
                and isinstance(span.fingerprint, str)
                and len(span.fingerprint) == 64
                and span.cell > 0
                and 0 <= span.start < span.end <= OPEN_END
            )
        except TypeError:
            sound = False
        if not sound:
            raise SteeringFault(f"malformed steering in a request's extra_args: {spec!r}")
        return span


class StepTable:
    """The requests' spans, and for each how far it has been processed under them.

    A slot belongs to a request's key, not to its place in the batch: preemption takes a request
    out of the runner and brings it back, and the record must go on where it was.
    """

    def __init__(self, fingerprints: Sequence[str] = ("",)) -> None:
        self.fingerprints = list(fingerprints)
        self._slot_of_request: dict[str, int] = {}
        self._slot_of_key: dict[int, int] = {}
        self._free: list[int] = []
        # These are collected, but the runner may still hold the request for a step that is scheduled ahead.
        self._leaving: set[int] = set()
        # slot 0 is every unsteered request
        self._cell = np.zeros(1, np.int32)
        self._start = np.zeros(1, np.int64)
        self._end = np.zeros(1, np.int64)
        self._first = np.full(1, NOT_SEEN, np.int64)
        self._done = np.zeros(1, np.int64)
        # whether it is back from a preemption and was in no step since
        self._resumed = np.zeros(1, bool)
        # positions of steered requests that were computed again after a preemption
        self.recomputed = 0

    @property
    def open_keys(self) -> int:
        return len(self._slot_of_key)

    def add(self, request_id: str, extra_args: Mapping[str, Any] | None) -> None:
        """Take a request in, new or resumed. Refuses a cell that is not what the request means."""
        span = CellSpan.from_extra_args(extra_args)
        if span is None:
            self._slot_of_request[request_id] = 0
            return
        if span.cell >= len(self.fingerprints):
            raise SteeringFault(f"cell {span.cell} is not in the table of {len(self.fingerprints)} cells")
        if self.fingerprints[span.cell] != span.fingerprint:
            raise SteeringFault(f"cell {span.cell} does not hold the steering that the request means")
        slot = self._slot_of_key.get(span.key)
        if slot is None:
            slot = self._take_slot()
            self._slot_of_key[span.key] = slot
            self._cell[slot], self._start[slot], self._end[slot] = span.cell, span.start, span.end
            self._first[slot], self._done[slot] = NOT_SEEN, 0
            self._resumed[slot] = False
        else:
            self._resumed[slot] = True
        self._slot_of_request[request_id] = slot

    def resume(self, request_id: str) -> None:
        """Note that a request is back from a preemption, where the runner never let go of it.

        It may then go on behind the position where it stopped: in between lie cache blocks that others of the
        same identity have computed meanwhile, as may lie before a request's first position.
        """
        self._resumed[self._slot_of_request.get(request_id, 0)] = True

    def remove(self, request_id: str) -> None:
        """Forget a request's place in the runner; its record stays until it is collected."""
        slot = self._slot_of_request.pop(request_id, 0)
        if slot in self._leaving:
            self._leaving.remove(slot)
            self._free.append(slot)

    def keep_only(self, alive: Container[str]) -> None:
        """Remove every request that the runner no longer has."""
        for request_id in [id_ for id_ in self._slot_of_request if id_ not in alive]:
            self.remove(request_id)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._slot_of_request

    def __len__(self) -> int:
        return len(self._slot_of_request)

    def fill(
        self,
        out: NDArray[np.int32],
        request_ids: Sequence[str],
        computed: NDArray[np.integer[Any]],
        scheduled: NDArray[np.integer[Any]],
    ) -> int:
        """Write the cell of every token of this step into `out`; returns how many tokens there are.

        `computed[i]` is the first position of request i in this step and `scheduled[i]` how many it
        has. Padding behind the step's tokens becomes unsteered.
        """
        count = len(request_ids)
        of = self._slot_of_request
        slots = np.fromiter((of[id_] for id_ in request_ids), np.intp, count)
        first = np.asarray(computed[:count], np.int64)
        tokens = np.asarray(scheduled[:count], np.int64)
        total = int(tokens.sum())
        out[total:] = 0
        if not slots.any():
            out[:total] = 0
            return total
        ends = np.cumsum(tokens)
        index = np.repeat(np.arange(count), tokens)
        position = np.arange(total) - np.repeat(ends - tokens - first, tokens)
        slot = slots[index]
        inside = (position >= self._start[slot]) & (position < self._end[slot])
        out[:total] = np.where(inside, self._cell[slot], 0)
        self._record(slots, first, first + tokens)
        return total

    def _record(self, slots: NDArray[np.intp], lo: NDArray[np.int64], hi: NDArray[np.int64]) -> None:
        steered = slots > 0
        slots, lo, hi = slots[steered], lo[steered], hi[steered]
        new = self._first[slots] == NOT_SEEN
        self._first[slots[new]] = lo[new]
        self._done[slots[new]] = lo[new]
        if ((lo > self._done[slots]) & ~self._resumed[slots]).any():
            raise SteeringFault("a request skipped positions between two steps: they may be unsteered")
        self.recomputed += int((np.minimum(hi, self._done[slots]) - lo).clip(min=0).sum())
        self._done[slots] = np.maximum(self._done[slots], hi)
        self._resumed[slots] = False

    def collect(self, keys: Sequence[int]) -> list[list[int]]:
        """The first position processed and the one after the last for each key, which is forgotten then.

        Positions below the first, and those passed over by a request back from a preemption, came from
        cache blocks of the same steering or unsteered.
        A key that no step ever saw gives [-1, 0].
        """
        found: list[list[int]] = []
        held = set(self._slot_of_request.values())
        for key in keys:
            slot = self._slot_of_key.pop(key, None)
            if slot is None:
                found.append([NOT_SEEN, 0])
                continue
            found.append([int(self._first[slot]), int(self._done[slot])])
            (self._leaving.add if slot in held else self._free.append)(slot)
        return found

    def _take_slot(self) -> int:
        if not self._free:
            size = len(self._cell)
            for name in ("_cell", "_start", "_end", "_first", "_done", "_resumed"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate([old, np.zeros_like(old, shape=max(size, 255))]))
            self._free = list(range(len(self._cell) - 1, size - 1, -1))
        return self._free.pop()
