"""A plan's rows through an engine into a store: the one loop between them.

Rows go in prompt by prompt with all their configurations, and are written as they finish. What stands already
is left out, so that the same call goes on where a killed one stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsteer.errors import SteeringFault
from vsteer.plan.plan import Plan
from vsteer.plan.rows import Row, row_of
from vsteer.protocol import Engine, Request, Result
from vsteer.run.vectors import StoredVectors
from vsteer.store.shards import Done
from vsteer.store.store import Store


@dataclass
class Counts:
    """What this start of a run has done so far."""

    rows: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        self.rows += 1
        self.failed += record["status"] != "ok"
        self.prompt_tokens += record["prompt_tokens"] or 0
        self.cached_tokens += record["cached_tokens"] or 0
        self.completion_tokens += record["completion_tokens"] or 0


@dataclass(frozen=True)
class Provenance:
    """What made the rows, as every row tells it."""

    engine: str
    vllm_version: str
    session: int
    vectors: StoredVectors

    def of(self, row: Row) -> dict[str, Any]:
        key = row.config.vector.key if row.config.vector else None
        return {
            "vector_sha256": self.vectors.content_sha256[key] if key else "",
            "vector_file_sha256": self.vectors.file_sha256[key] if key else "",
            "engine": self.engine,
            "vllm_version": self.vllm_version,
            "run_session": self.session,
        }


@dataclass
class _Waiting:
    row: Row
    attempt: int
    started: datetime
    results: list[Result | None] = field(default_factory=list)


def next_attempts(plan: Plan, done: Done, retry: Done | None = None) -> NDArray[np.int32]:
    """The number of each row's next attempt, in the order of `plan.row_ids`; 0 for a row that stands.

    `retry` is what stood when failed rows were to be tried again: those that have failed since are not.
    """
    ids = plan.row_ids
    failed = done.attempts(ids)
    wanted = failed == (0 if retry is None else retry.attempts(ids))
    wanted &= ~done.good.places(ids)[1]
    return np.where(wanted, failed + 1, 0).astype(np.int32)


def rows_to_do(plan: Plan, attempts: NDArray[np.int32]) -> Iterator[tuple[Row, int]]:
    """The plan's rows that do not stand yet, each with the number of this attempt."""
    chosen = attempts > 0
    return zip(plan.rows(chosen), map(int, attempts[chosen]), strict=True)


def run_rows(
    engine: Engine,
    rows: Iterable[tuple[Row, int]],
    store: Store,
    making: Provenance,
    counts: Counts,
    tell: Callable[[Counts, int], None] = lambda counts, waiting: None,
    stopping: Callable[[], bool] = lambda: False,
    meter: Callable[[Mapping[str, Any]], None] = lambda record: None,
) -> None:
    """Every row through the engine and into the store. `stopping` ends the submission; what runs is finished.

    `tell` hears of every row that is written, and of how many are under way; `meter` sees each record.
    """
    waiting: dict[str, _Waiting] = {}

    def requests() -> Iterator[Request]:
        for row, attempt in rows:
            if stopping():
                return
            asked = row.requests()
            if row.row_id in waiting:
                raise SteeringFault(f"the row {row.row_id} stands twice in the plan")
            waiting[row.row_id] = _Waiting(row, attempt, datetime.now(UTC), [None] * len(asked))
            yield from asked

    for result in engine.run(requests()):
        name, place = row_of(result.id)
        under_way = waiting[name]
        under_way.results[place] = result
        results = [found for found in under_way.results if found is not None]
        if len(results) < len(under_way.results):
            continue
        del waiting[name]
        record = {
            **under_way.row.record(results),
            **making.of(under_way.row),
            "started_at": under_way.started,
            "finished_at": datetime.now(UTC),
            "attempt": under_way.attempt,
        }
        store.append(record)
        counts.add(record)
        meter(record)
        tell(counts, len(waiting))
    if waiting:
        raise SteeringFault(f"{len(waiting)} rows were handed to the engine and never came back")
