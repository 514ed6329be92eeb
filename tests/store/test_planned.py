"""Places of planned rows and what stands there, held against plain loops over the ids."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.store.makers import error_row, row
from vsteer import identity
from vsteer.store.planned import Planned, PlannedPart
from vsteer.store.store import open_store

# The second part is asked in the first one's way: it shares two configurations and no question.
PARTS = [
    PlannedPart("a", ["a0", "a1", "a2"], [("i", "original"), ("i", "swapped"), ("j", "original")]),
    PlannedPart("a", ["a2", "a3", "a0"], [("k", "original")], samples=4),
    PlannedPart("b", ["b0"], [("i", "original"), ("k", "swapped")], samples=2),
]


def in_order(parts: list[PlannedPart]) -> list[tuple[str, str, str, int]]:
    return [
        (config, item, order, sample)
        for part in parts
        for (item, order), config, sample in product(part.questions, part.config_ids, range(part.samples))
    ]


def record(
    config: str, item: str, order: str, sample: int, *, ok: bool = True, attempt: int = 1
) -> dict[str, Any]:
    key = {"config_id": config, "item_id": item, "letter_order": order, "sample": sample}
    name = identity.row_id(config, item, order, sample)
    return (row if ok else error_row)(0, **key, row_id=name, attempt=attempt)


def test_each_row_has_its_place(tmp_path: Path) -> None:
    rows = in_order(PARTS)
    planned = Planned(PARTS)
    assert len(planned) == len(rows) == 9 + 12 + 4
    assert [planned.row_id(place) for place in range(len(rows))] == [identity.row_id(*one) for one in rows]
    # None of these is planned: an unknown configuration, item or order, and a pair that does not meet.
    strange = [
        ("a9", "i", "original", 0),
        ("a0", "z", "original", 0),
        ("a0", "j", "swapped", 0),
        ("a3", "i", "original", 0),
        ("a1", "k", "original", 0),
        ("b0", "j", "original", 0),
        ("a0", "i", "original", 1),
        ("b0", "k", "swapped", 2),
    ]
    random = Random(0)
    chosen = random.sample(rows, 15)
    failed = random.sample(chosen, 5)
    written = [*chosen, *strange]
    random.shuffle(written)
    with open_store(tmp_path, shard_rows=4) as store:
        for one in written:
            store.append(record(*one, ok=one not in failed, attempt=2 if one == failed[0] else 1))
        store.append(record(*failed[1], attempt=3))
        store.append(record(*failed[2], ok=False, attempt=3))
        store.append(record(*failed[2], ok=False, attempt=2))
        store.append(record(*next(one for one in chosen if one not in failed), ok=False, attempt=2))
        store.flush()
        for _ in ("as shards", "compacted"):
            standing = store.standing(planned)
            good = set(chosen) - set(failed) | {failed[1]}
            assert {rows[place] for place in standing.good.nonzero()[0]} == good
            attempts = {failed[0]: 2, failed[2]: 3, failed[3]: 1, failed[4]: 1}
            assert {rows[n]: int(t) for n, t in enumerate(standing.attempts(0, len(rows))) if t} == attempts
            assert standing.attempts(7, 9).tolist() == standing.attempts(0, len(rows))[7:16].tolist()
            assert (standing.good_count, standing.count) == (11, 15)
            gone = {rows[place] for place in standing.missing(100)}
            assert gone == set(rows) - set(chosen)
            assert set(standing.unplanned) == {identity.row_id(*one) for one in strange}
            store.compact()


def test_a_question_is_planned_once_in_one_way() -> None:
    with pytest.raises(ValueError, match="planned twice"):
        Planned([PARTS[0], PlannedPart("a", ["a0"], [("j", "original")])])


def test_a_plan_may_be_empty(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.append(row(0))
        store.flush()
        standing = store.standing(Planned([]))
        assert (standing.count, len(standing.unplanned)) == (0, 1)
