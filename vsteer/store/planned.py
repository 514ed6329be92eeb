"""Which rows are planned, and which of them stand, without the id of any row.

A row's id is the hash of its configuration, its item, its letter order and its sample, and these stand in its
columns too. So each planned row has a place, which numbers tell, and what stands is an array of them: fifty
million rows take 50 MB, where their ids would take 800 MB and half a minute to hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vsteer.identity import row_id
from vsteer.store.ids import PACKED, RowIds, pack
from vsteer.store.schema import LETTER_ORDERS

KEY = ("config_id", "item_id", "letter_order")
Places = NDArray[np.int64]


@dataclass(frozen=True)
class PlannedPart:
    """Some questions, each of which meets the same configurations."""

    # How they are asked. Parts that are asked in the same way may share configurations, but no question.
    way: str
    config_ids: Sequence[str]
    questions: Sequence[tuple[str, str]]  # item id and letter order
    samples: int = 1


class Planned:
    """All rows of a run: part by part, question by question, configuration by configuration, by sample."""

    def __init__(self, parts: Iterable[PlannedPart]) -> None:
        parts = list(parts)
        ways = {way: n for n, way in enumerate(dict.fromkeys(part.way for part in parts))}
        self._configs: dict[str, int] = {}
        self._items: dict[str, int] = {}
        for part in parts:
            for config_id in part.config_ids:
                self._configs.setdefault(config_id, len(self._configs))
            for item_id, _ in part.questions:
                self._items.setdefault(item_id, len(self._items))
        self._way = np.zeros(len(self._configs) + 1, np.int32)
        self._samples = np.array([part.samples for part in parts] or [0])
        # which of a part's configurations each is, and which question of which part; -1 for none
        self._config_at = np.full((len(parts) or 1, len(self._configs) + 1), -1, np.int32)
        self._question_at = np.full(
            (len(ways) or 1, len(LETTER_ORDERS) * (len(self._items) + 1)), -1, np.int32
        )
        self._part = np.empty(sum(len(part.questions) for part in parts), np.int32)
        starts: list[int] = []
        self.rows = 0
        for n, part in enumerate(parts):
            numbers = [self._configs[config_id] for config_id in part.config_ids]
            self._way[numbers] = ways[part.way]
            self._config_at[n, numbers] = np.arange(len(numbers))
            for item_id, order in part.questions:
                at = ways[part.way], len(LETTER_ORDERS) * self._items[item_id] + LETTER_ORDERS.index(order)
                if self._question_at[at] >= 0:
                    raise ValueError(f"the question {item_id}, {order}, is planned twice in one way")
                self._question_at[at] = len(starts)
                self._part[len(starts)] = n
                starts.append(self.rows)
                self.rows += len(numbers) * part.samples
        self._start = np.array(starts, np.int64)
        self._parts = parts

    def __len__(self) -> int:
        return self.rows

    def row_id(self, place: int) -> str:
        question = int(np.searchsorted(self._start, place, "right")) - 1
        n = int(self._part[question])
        number, sample = divmod(place - int(self._start[question]), self._parts[n].samples)
        first = int(np.searchsorted(self._part, n))
        item_id, order = self._parts[n].questions[question - first]
        return row_id(self._parts[n].config_ids[number], item_id, order, sample)

    def places(self, rows: pa.Table) -> Places:
        """The place of each row, by its columns `KEY` and `sample`; -1 for one that isn't planned."""
        if not self.rows:
            return np.full(len(rows), -1, np.int64)
        config = _numbers(rows["config_id"], self._configs)
        item = _numbers(rows["item_id"], self._items)
        order = _numbers(rows["letter_order"], {order: n for n, order in enumerate(LETTER_ORDERS)})
        sample = rows["sample"].to_numpy()
        # What is unknown has the number -1, and so the last entry of each table, which says -1.
        question = self._question_at[self._way[config], len(LETTER_ORDERS) * item + order]
        part = self._part[question]
        number = self._config_at[part, config]
        samples = self._samples[part]
        known = (question >= 0) & (order >= 0) & (number >= 0) & (sample >= 0) & (sample < samples)
        return np.where(known, self._start[question] + number * samples + sample, -1)


@dataclass
class Standing:
    """Which planned rows have a good result, and which have nothing but errors."""

    good: NDArray[np.bool_]
    failed: Places = field(default_factory=lambda: np.empty(0, np.int64))  # sorted
    failed_attempts: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    unplanned: RowIds = field(default_factory=lambda: RowIds.of(()))

    def attempts(self, first: int, count: int) -> NDArray[np.int32]:
        """How many times each of these rows was tried without a good result; 0 for any other row."""
        begin, end = np.searchsorted(self.failed, (first, first + count))
        attempts = np.zeros(count, np.int32)
        attempts[self.failed[begin:end] - first] = self.failed_attempts[begin:end]
        return attempts

    def missing(self, most: int) -> Places:
        """The first places, at most so many, of rows that don't stand."""
        gone = ~self.good
        gone[self.failed] = False
        return np.flatnonzero(gone)[:most]

    @property
    def good_count(self) -> int:
        return int(self.good.sum())

    @property
    def count(self) -> int:
        """How many planned rows stand, each counted once."""
        return self.good_count + len(self.failed)


def read_standing(shards: Iterable[Path], planned: Planned) -> Standing:
    good = np.zeros(planned.rows, np.bool_)
    failed, attempts, unplanned = [np.empty(0, np.int64)], [np.empty(0, np.int32)], [np.empty(0, PACKED)]
    columns = [*KEY, "sample", "status", "attempt"]
    for shard in shards:
        with pq.ParquetFile(shard, page_checksum_verification=True, read_dictionary=[*KEY, "status"]) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns)
                places = planned.places(rows)
                ok = _numbers(rows["status"], {"ok": 1}) == 1
                strange = places < 0
                if strange.any():
                    ids = file.read_row_group(group, ["row_id"])["row_id"].filter(pa.array(strange))
                    unplanned.append(pack(ids.to_pylist()))
                good[places[ok & ~strange]] = True
                bad = ~ok & ~strange
                failed.append(places[bad])
                attempts.append(rows["attempt"].to_numpy()[bad])
    places, where = np.unique(np.concatenate(failed), return_inverse=True)
    highest = np.zeros(len(places), np.int32)
    np.maximum.at(highest, where, np.concatenate(attempts))
    only = ~good[places]
    return Standing(good, places[only], highest[only], RowIds.of_packed(unplanned))


def _numbers(column: pa.ChunkedArray, known: dict[str, int]) -> NDArray[np.intp]:
    """The number of each value, -1 for an unknown one; each distinct value is looked up once."""
    parts = [np.empty(0, np.intp)]
    for chunk in column.chunks:
        coded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        numbers = np.array([known.get(value, -1) for value in coded.dictionary.to_pylist()], np.intp)
        parts.append(numbers[coded.indices.to_numpy()] if len(coded) else parts[0])
    return np.concatenate(parts)
