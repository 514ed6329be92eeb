"""A bit flipped in any file of a run is found, or changes no answer; and no damage ends in a traceback.

`python -m tests.run.damage` prints the tables of what came of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import BYTES, SECONDS, in_fresh_process
from tests.results.made_up import make_run, sweep
from tests.run.damage import Flips, damaged, make
from vsteer.analysis.statistics import write_statistics
from vsteer.bench.memory import most_held


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


def test_a_flipped_bit_in_a_small_run(tmp_path: Path) -> None:
    home = tmp_path / "made"
    steered = sweep("toy", (1, 2), (-1.0, 1.0))
    write_statistics(
        make_run(home / "runs" / "try", steered, lambda cell: cell.item + cell.steered.multiplier)
    )
    flips = Flips(home, 6, {("sql", "export", "status"): 1})
    found = [flips.flip() for _ in range(8)]
    assert [one for one in found if one.faults] == []
    assert {one.outcome for one in found} == {"found", "harmless"}


@pytest.mark.parametrize(
    "count", [pytest.param(30, marks=pytest.mark.long), pytest.param(1000, marks=pytest.mark.slow)]
)
def test_a_flipped_bit_is_found_or_harmless(home: Path, count: int) -> None:
    flips = Flips(home, seed=count)
    found = [flips.flip() for _ in range(count)]
    assert [one for one in found if one.faults] == []
    outcomes = [one.outcome for one in found]
    assert outcomes.count("found") > count / 4
    shards = [one for one in found if "/rows/" in one.file]
    assert {one.outcome for one in shards} == {"found"}


@pytest.mark.parametrize(
    "count", [pytest.param(30, marks=pytest.mark.long), pytest.param(500, marks=pytest.mark.slow)]
)
def test_no_command_ends_in_a_traceback_on_a_damaged_run(home: Path, count: int) -> None:
    tried, peak = in_fresh_process(commands_on_damaged, home, count)
    assert [one for one in tried if one[3]] == []
    assert max(seconds for *_, seconds in tried) < SECONDS
    assert peak < BYTES


def commands_on_damaged(home: Path, count: int) -> tuple[list[tuple[str, str, str, str, float]], int]:
    """The commands, and the most memory in bytes."""
    return list(damaged(home, count, count)), most_held()
