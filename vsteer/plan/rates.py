"""How fast earlier runs of a model were on this machine, so that a plan can say how long it will take.

A run measures windows of some seconds in which rows of one kind alone came back: choices show how fast
prompts are computed, open-ended texts how fast tokens are generated. The tenth and the ninetieth percentile
of the windows' speeds are kept.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from vsteer import models
from vsteer.files import written_whole
from vsteer.grid.spec import EngineSpec
from vsteer.identity import identify
from vsteer.plan.budget import Rates
from vsteer.plan.plan import Plan

WINDOW_SECONDS = 5.0
# With fewer windows of a kind no speed is given.
FEWEST = 3
# What makes the same model faster or slower.
SPEED = ("tensor_parallel_size", "pipeline_parallel_size", "replicas", "enforce_eager", "prefix_caching")


class Meter:
    """Measures the windows from the rows, in the order in which they are written."""

    def __init__(self) -> None:
        self.windows: dict[str, list[tuple[float, int, int]]] = {}
        self._kind = ""
        self._began = 0.0
        self._computed = self._generated = 0

    def add(self, record: Mapping[str, Any], now: float | None = None) -> None:
        now = time.monotonic() if now is None else now
        if record["kind"] != self._kind:
            # A window with rows of both kinds shows neither speed.
            self._kind, self._began = record["kind"], now
            self._computed = self._generated = 0
            return
        self._computed += (record["prompt_tokens"] or 0) - (record["cached_tokens"] or 0)
        self._generated += record["completion_tokens"] or 0
        if now - self._began >= WINDOW_SECONDS:
            window = (now - self._began, self._computed, self._generated)
            self.windows.setdefault(self._kind, []).append(window)
            self._began, self._computed, self._generated = now, 0, 0

    def rates(self) -> dict[str, tuple[float, float]]:
        """Tokens a second, slow and fast, for prompts and for what is generated, where they were measured."""
        found: dict[str, tuple[float, float]] = {}
        prompts = [computed / seconds for seconds, computed, _ in self.windows.get("choice", ())]
        if len(prompts) >= FEWEST:
            found["prompt"] = _spread(prompts)
        texts = [generated / seconds for seconds, _, generated in self.windows.get("open_ended", ())]
        if len(texts) >= FEWEST:
            found["output"] = _spread(texts)
        return found


def keep(plan: Plan, meter: Meter) -> None:
    """Remember what a run measured. A run does not fail where that can't be written."""
    rates = meter.rates()
    if not rates:
        return
    with suppress(OSError):
        known = _read()
        known[_key(plan)] = known.get(_key(plan), {}) | {name: list(rate) for name, rate in rates.items()}
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, shared=True) as temporary:
            temporary.write_text(json.dumps(known, indent=1))


def known_rates(plan: Plan) -> Rates | None:
    """What earlier runs of this model on this machine measured; None where that is too little."""
    if plan.pending:
        return None
    found = _read().get(_key(plan), {})
    generates = any(block.spec.evaluation.sampling.max_tokens > 1 for block in plan.blocks)
    if "prompt" not in found or (generates and "output" not in found):
        return None
    prompt, output = found["prompt"], found.get("output", [1.0, 1.0])
    return Rates(prompt=(prompt[0], prompt[1]), output=(output[0], output[1]))


def _spread(values: Sequence[float]) -> tuple[float, float]:
    slow, fast = np.percentile(values, (10, 90))
    return float(slow), float(fast)


def _key(plan: Plan) -> str:
    spec: EngineSpec = plan.grid.engine_for(plan.grid.model[plan.model])
    speed = {name: getattr(spec, name) for name in SPEED}
    return identify([plan.facts.identity(), speed, platform.node(), os.cpu_count()])


def _read() -> dict[str, dict[str, list[float]]]:
    try:
        found = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _path() -> Path:
    return models.home() / "rates.json"
