"""Which rows a start computes, counted by hand from what stands."""

from pathlib import Path

import numpy as np
import pytest

from tests.plan.sample import filled, planner
from vsteer.plan.plan import Plan
from vsteer.run.loop import next_attempts, rows_to_do
from vsteer.store.ids import RowIds
from vsteer.store.shards import Done


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return planner(filled(tmp_path))()


def done(good: list[str], errors: dict[str, int]) -> Done:
    ids = RowIds.of(errors)
    return Done(RowIds.of(good), ids, np.array([errors[name] for name in ids], np.int32))


def attempts(plan: Plan, *stands: Done) -> dict[int, int]:
    """The next attempt of each row that is computed, by its place in the plan."""
    names = [row.row_id for row in plan.rows()]
    made = rows_to_do(plan, next_attempts(plan, *stands))
    return {names.index(row.row_id): attempt for row, attempt in made}


def test_rows_that_stand_are_left_out(plan: Plan) -> None:
    names = [row.row_id for row in plan.rows()]
    everything = set(range(len(names)))
    assert attempts(plan, done([], {})) == dict.fromkeys(everything, 1)
    # row 0 is good, row 1 failed three times; rows of another plan stand too
    stands = done([names[0], "0" * 32, "f" * 32], {names[1]: 3, "e" * 32: 1})
    assert attempts(plan, stands) == dict.fromkeys(everything - {0, 1}, 1)
    assert not attempts(plan, done(names, {}))


def test_failed_rows_are_tried_again_once_a_start(plan: Plan) -> None:
    names = [row.row_id for row in plan.rows()]
    first = done(names[2:], {names[0]: 1, names[1]: 3})
    assert attempts(plan, first, first) == {0: 2, 1: 4}
    # the engine died: row 0 has failed again since, row 1 was not reached, row 2 is there no more
    assert attempts(plan, done(names[3:], {names[0]: 2, names[1]: 3}), first) == {1: 4, 2: 1}
    assert not attempts(plan, done(names[1:], {names[0]: 2}), first)
