"""Which rows a start computes, counted by hand from what stands."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.plan.sample import filled, planner
from vsteer.plan.plan import Plan
from vsteer.run.loop import ToDo, rows_of
from vsteer.store.planned import Standing


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return planner(filled(tmp_path))()


def standing(rows: int, good: Iterable[int], failed: Mapping[int, int]) -> Standing:
    is_good = np.zeros(rows, np.bool_)
    is_good[list(good)] = True
    places = sorted(failed)
    attempts = np.array([failed[place] for place in places], np.int32)
    return Standing(is_good, np.array(places, np.int64), attempts)


def attempts(plan: Plan, *stands: Standing, first: int = 0) -> dict[int, int]:
    """The next attempt of each row that is computed, by its place in the plan."""
    names = [row.row_id for row in plan.rows()]
    to_do = ToDo(plan, first, *stands)
    found = {names.index(row.row_id): attempt for row, attempt in rows_of(to_do.prompts())}
    assert bool(to_do) == bool(found)
    return found


def test_rows_that_stand_are_left_out(plan: Plan) -> None:
    count = plan.row_count
    everything = set(range(count))
    assert attempts(plan, standing(count, [], {})) == dict.fromkeys(everything, 1)
    # row 0 is good, and row 1 failed three times
    assert attempts(plan, standing(count, [0], {1: 3})) == dict.fromkeys(everything - {0, 1}, 1)
    assert not attempts(plan, standing(count, everything, {}))
    # another plan's rows, 100 of them, come before and after
    of_both = standing(count + 200, [5, 100, 100 + count], {101: 3, 100 + count + 1: 1})
    assert attempts(plan, of_both, first=100) == dict.fromkeys(everything - {0, 1}, 1)


def test_failed_rows_are_tried_again_once_a_start(plan: Plan) -> None:
    count = plan.row_count
    before = standing(count, range(2, count), {0: 1, 1: 3})
    assert attempts(plan, before, before) == {0: 2, 1: 4}
    # the engine died: row 0 has failed again since, row 1 was not reached, row 2 is there no more
    assert attempts(plan, standing(count, range(3, count), {0: 2, 1: 3}), before) == {1: 4, 2: 1}
    assert not attempts(plan, standing(count, range(1, count), {0: 2}), before)
