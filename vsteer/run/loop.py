"""A plan's rows through an engine into a store: the one loop between them.

Rows go in prompt by prompt with all their configurations, and are written as they finish. Rows that stand
already are left out, so that the same call goes on where a killed one stopped. To an engine that takes blocks
a prompt with given answers goes as one, and its rows come back together, as columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from vsteer.errors import SteeringFault
from vsteer.plan.block_rows import ConfigColumns
from vsteer.plan.configurations import Config
from vsteer.plan.plan import Plan
from vsteer.plan.rows import PromptRows, Row, row_of
from vsteer.protocol import Block, Engine, Request, Result
from vsteer.run.vectors import StoredVectors
from vsteer.store.planned import Standing
from vsteer.store.schema import FORKS
from vsteer.store.store import Store

# How many places are looked at together for what is to do.
AT_ONCE = 1 << 20
SUMMED = ("prompt_tokens", "cached_tokens", "completion_tokens")


@dataclass
class Counts:
    """What this start of a run has done so far."""

    rows: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, record: Mapping[str, Any], rows: int = 1, failed: int | None = None) -> None:
        """Count a row, or a block's rows, whose sums `record` then has."""
        self.rows += rows
        self.failed += record["status"] != "ok" if failed is None else failed
        self.prompt_tokens += record["prompt_tokens"] or 0
        self.cached_tokens += record["cached_tokens"] or 0
        self.completion_tokens += record["completion_tokens"] or 0


@dataclass(frozen=True)
class Provenance:
    """What made the rows; every row has it in its columns."""

    engine: str
    vllm_version: str
    session: int
    vectors: StoredVectors

    def name(self, forked: bool) -> str:
        """What a row says of the engine."""
        return self.engine + (FORKS if forked else "")

    def of(self, config: Config, forked: bool) -> dict[str, Any]:
        key = config.vector.key if config.vector else None
        return {
            "vector_sha256": self.vectors.content_sha256[key] if key else "",
            "vector_file_sha256": self.vectors.file_sha256[key] if key else "",
            "engine": self.name(forked),
            "vllm_version": self.vllm_version,
            "run_session": self.session,
        }


# A prompt, and the number of each of its rows' next attempt; 0 where a row is not to be computed.
Attempts = tuple[PromptRows, NDArray[np.int32]]


@dataclass
class _Waiting:
    row: Row
    attempt: int
    started: datetime
    results: list[Result | None] = field(default_factory=list)


@dataclass(frozen=True)
class _WaitingBlock:
    prompt: PromptRows
    columns: ConfigColumns
    places: NDArray[np.intp]
    attempts: NDArray[np.int32]
    started: datetime


@dataclass(frozen=True)
class ToDo:
    """The rows of one plan that a start computes: those that don't stand, or failed ones once more."""

    plan: Plan
    first: int  # the place of the plan's first row among all that are planned
    standing: Standing
    # What stood when failed rows were to be tried again; those that have failed since are not.
    retry: Standing | None = None

    def __bool__(self) -> bool:
        places = range(self.first, self.first + self.plan.row_count, AT_ONCE)
        return any(self._attempts(place, min(AT_ONCE, places.stop - place)).any() for place in places)

    def prompts(self) -> Iterator[Attempts]:
        """The prompts of which a row is to be computed, with the number of each row's attempt; 0: none."""
        place = self.first
        for prompt in self.plan.prompts():
            attempts = self._attempts(place, prompt.count)
            place += prompt.count
            if attempts.any():
                yield prompt, attempts

    def _attempts(self, first: int, count: int) -> NDArray[np.int32]:
        """The number of each row's next attempt; 0 for a row that stands."""
        failed = self.standing.attempts(first, count)
        wanted = failed == (0 if self.retry is None else self.retry.attempts(first, count))
        wanted &= ~self.standing.good[first : first + count]
        return np.where(wanted, failed + 1, 0).astype(np.int32)


def rows_of(prompts: Iterable[Attempts]) -> Iterator[tuple[Row, int]]:
    """The rows one by one, each with the number of this attempt."""
    for prompt, attempts in prompts:
        places = np.flatnonzero(attempts)
        yield from zip(prompt.rows(places.tolist()), attempts[places].tolist(), strict=True)


@dataclass(frozen=True)
class RowLoop:
    """What takes rows through an engine and writes them.

    For each row that is written, or each block of rows, `on_progress` is called with how many rows are under
    way, and `meter` with its record. Once `stopping` is true nothing more is submitted; what is under way is
    finished.
    """

    engine: Engine
    store: Store
    provenance: Provenance
    counts: Counts = field(default_factory=Counts)
    on_progress: Callable[[Counts, int], None] = lambda counts, waiting: None
    stopping: Callable[[], bool] = lambda: False
    meter: Callable[[Mapping[str, Any]], None] = lambda record: None

    def run(self, prompts: Iterable[Attempts]) -> None:
        """Run every row and store it: as blocks where the engine takes them, and else one by one."""
        blocks = self.engine.info.blocks
        prompts = self._reachable(prompts)
        for as_blocks, some in groupby(prompts, lambda one: blocks and one[0].is_block):
            if as_blocks:
                self._run_blocks(some)
            else:
                self.run_rows(rows_of(some))
            if self.stopping():
                return

    def _reachable(self, prompts: Iterable[Attempts]) -> Iterator[Attempts]:
        """What can be steered as it says; a row whose dose no multiplier has fails, and no engine sees it."""
        for prompt, attempts in prompts:
            unreachable = np.repeat([bool(config.unreachable) for config in prompt.configs], prompt.samples)
            lost = np.flatnonzero(unreachable & (attempts > 0))
            for row, attempt in rows_of([(prompt, np.where(unreachable, attempts, 0))] if len(lost) else ()):
                now = datetime.now(UTC)
                failed = Result(row.row_id, "error", error=row.config.unreachable)
                self._write(row, [failed], attempt, now)
            if (left := np.where(unreachable, 0, attempts)).any():
                yield prompt, left

    def _run_blocks(self, prompts: Iterable[Attempts]) -> None:
        waiting: dict[str, _WaitingBlock] = {}
        columns: ConfigColumns | None = None
        under_way = 0

        def blocks() -> Iterator[Block]:
            nonlocal columns, under_way
            for number, (prompt, attempts) in enumerate(prompts):
                if self.stopping():
                    return
                if columns is None or columns.configs is not prompt.configs:
                    columns = ConfigColumns(prompt.configs, partial(self.provenance.of, forked=False))
                places = np.flatnonzero(attempts)
                block = columns.block(prompt, f"{prompt.rendered.prompt_id}.{number}", places)
                waiting[block.id] = _WaitingBlock(
                    prompt, columns, places, attempts[places], datetime.now(UTC)
                )
                under_way += len(places)
                yield block

        for block, scores in self.engine.run_blocks(blocks()):
            of = waiting.pop(block.id)
            made = {
                "started_at": of.started,
                "finished_at": datetime.now(UTC),
                "engine": self.provenance.name(scores.forked),
            }
            rows = of.columns.rows(of.prompt, of.places, scores, of.attempts, made)
            self.store.append_rows(rows)
            under_way -= len(rows)
            sums = {name: pc.sum(rows[name]).as_py() for name in SUMMED}
            record = {"kind": rows["kind"][0].as_py(), **sums}
            self.counts.add(record, len(rows), rows["error"].length() - rows["error"].null_count)
            self.meter(record)
            self.on_progress(self.counts, under_way)
        if waiting:
            raise SteeringFault(f"{len(waiting)} blocks were handed to the engine and never came back")

    def run_rows(self, rows: Iterable[tuple[Row, int]]) -> None:
        """Run each row, with the number of its attempt, as requests of its own."""
        waiting: dict[str, _Waiting] = {}

        def requests() -> Iterator[Request]:
            for row, attempt in rows:
                if self.stopping():
                    return
                made = row.requests()
                if row.row_id in waiting:
                    raise SteeringFault(f"the row {row.row_id} stands twice in the plan")
                waiting[row.row_id] = _Waiting(row, attempt, datetime.now(UTC), [None] * len(made))
                yield from made

        for result in self.engine.run(requests()):
            name, place = row_of(result.id)
            under_way = waiting[name]
            under_way.results[place] = result
            results = [found for found in under_way.results if found is not None]
            if len(results) < len(under_way.results):
                continue
            del waiting[name]
            self.meter(self._write(under_way.row, results, under_way.attempt, under_way.started))
            self.on_progress(self.counts, len(waiting))
        if waiting:
            raise SteeringFault(f"{len(waiting)} rows were handed to the engine and never came back")

    def _write(self, row: Row, results: Sequence[Result], attempt: int, started: datetime) -> dict[str, Any]:
        record = {
            **row.record(results),
            **self.provenance.of(row.config, all(result.forked for result in results)),
            "started_at": started,
            "finished_at": datetime.now(UTC),
            "attempt": attempt,
        }
        self.store.append(record)
        self.counts.add(record)
        return record
