"""How fast earlier runs of a model were on this machine, so that a plan can say how long it will take.

A run measures windows of some seconds in which rows of one kind alone came back, and keeps the tenth and the
ninetieth percentile of their speeds; where a kind took less than three windows, its speed as a whole. What is
around the rows has one speed each: the engine's start, the extraction, the perplexities, and the run's end.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from vsteer import models
from vsteer.files import written_whole
from vsteer.grid.spec import EngineSpec
from vsteer.identity import identify
from vsteer.plan.plan import Plan

WINDOW_SECONDS = 5.0
# A shorter one is left out: rows come back in bursts.
SHORTEST_SECONDS = 2.0
# With fewer windows of a kind their percentiles say nothing.
FEWEST = 3
# What makes the same model faster or slower.
SPEED = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "replicas",
    "enforce_eager",
    "prefix_caching",
    "forks",
    "max_num_seqs",
    "max_num_batched_tokens",
)


@dataclass(frozen=True)
class Rate:
    """Something a second: the slowest and the fastest that was measured, and on which day."""

    slow: float
    fast: float
    day: str


@dataclass
class _Window:
    seconds: float = 0.0
    rows: int = 0
    tokens: int = 0


class Meter:
    """Measures the windows from the rows, in the order in which they are written."""

    def __init__(self, now: float | None = None) -> None:
        self._windows: dict[str, list[_Window]] = {}
        self._kind = ""
        self._began = self._last = time.monotonic() if now is None else now
        self._window = _Window()

    def add(self, record: Mapping[str, Any], now: float | None = None) -> None:
        now = time.monotonic() if now is None else now
        if record["kind"] != self._kind:
            # A window with rows of both kinds would show neither speed.
            self._close()
            self._kind = record["kind"]
        self._window.rows += 1
        if self._kind == "choice":
            self._window.tokens += (record["prompt_tokens"] or 0) - (record["cached_tokens"] or 0)
        else:
            self._window.tokens += record["completion_tokens"] or 0
        self._last = now
        if now - self._began >= WINDOW_SECONDS:
            self._close()

    def rates(self, day: date | None = None) -> dict[str, Rate]:
        """Rows and tokens a second of each kind: computed tokens of prompts, or generated ones of texts."""
        self._close()
        today = (day or date.today()).isoformat()
        found = {}
        for kind, windows in self._windows.items():
            whole = [one for one in windows if one.seconds >= WINDOW_SECONDS]
            if len(whole) < FEWEST:
                whole = [_Window(*(sum(values) for values in zip(*map(_values, windows), strict=True)))]
            for what in ("rows", "tokens"):
                slow, fast = np.percentile([getattr(one, what) / one.seconds for one in whole], (10, 90))
                if slow > 0:
                    found[f"{kind}_{what}"] = Rate(float(slow), float(fast), today)
        return found

    def _close(self) -> None:
        self._window.seconds = self._last - self._began
        if self._kind and self._window.seconds >= SHORTEST_SECONDS:
            self._windows.setdefault(self._kind, []).append(self._window)
        self._window, self._began = _Window(), self._last


def _values(window: _Window) -> tuple[float, int, int]:
    return window.seconds, window.rows, window.tokens


def one_rate(count: float, seconds: float) -> Rate | None:
    """The speed of something that was measured once."""
    if seconds <= 0 or count <= 0:
        return None
    return Rate(count / seconds, count / seconds, date.today().isoformat())


def keep(plan: Plan, rates: Mapping[str, Rate | None]) -> None:
    """Remember what a run measured. A run does not fail where that can't be written."""
    measured = {name: [rate.slow, rate.fast, rate.day] for name, rate in rates.items() if rate}
    if not measured:
        return
    with suppress(OSError):
        known = _read()
        known[_key(plan)] = known.get(_key(plan), {}) | measured
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, shared=True) as temporary:
            temporary.write_text(json.dumps(known, indent=1))


def known_rates(plan: Plan) -> dict[str, Rate]:
    """What earlier runs of this model on this machine measured."""
    if plan.pending:
        return {}
    found = {}
    for name, value in _read().get(_key(plan), {}).items():
        with suppress(TypeError, ValueError):
            slow, fast, day = value
            if 0 < float(slow) <= float(fast):
                found[name] = Rate(float(slow), float(fast), str(day))
    return found


def _key(plan: Plan) -> str:
    spec: EngineSpec = plan.grid.engine_for(plan.grid.model[plan.model])
    speed = spec.model_dump(mode="json", include=set(SPEED))
    return identify([plan.facts.identity(), speed, platform.node(), os.cpu_count()])


def _read() -> dict[str, dict[str, Sequence[Any]]]:
    try:
        found = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _path() -> Path:
    return models.home() / "rates.json"
