"""A run that is killed again and again: what each kill costs, and what every row is in the end."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized, SynchronizedArray
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.fake_engine import FakeBlockEngine, FakeEngine
from tests.run import fake
from tests.run.test_start import events, made_folder, planned, rows_of, run, written
from vsteer.run.start import run_grid
from vsteer.store.journal import journals, whole_rows
from vsteer.store.store import Store

FORK = multiprocessing.get_context("fork")
# The most that a kill may cost, in seconds of work.
MOST_SECONDS = 5.0
SAME = "row_id, status, error, text, token_ids, choice_logprobs, logit_diff, vector_sha256"


@dataclass(frozen=True)
class Kill:
    """`came` rows since this start, `lost` of them, which were the work of the last `seconds`."""

    came: int
    lost: int
    seconds: float


def counted_run(
    grid: Path, pace: float, kind: type[FakeEngine], came: Synchronized[int], when: SynchronizedArray[float]
) -> None:
    """A start of the run that leaves the time of each row where its killer can see it."""
    append, append_rows = Store.append, Store.append_rows

    def count(rows: int) -> None:
        when[came.value : came.value + rows] = [time.monotonic()] * rows
        came.value += rows

    def counting(store: Store, record: Any) -> None:
        append(store, record)
        count(1)

    def counting_rows(store: Store, rows: pa.Table) -> None:
        append_rows(store, rows)
        count(len(rows))

    Store.append = counting  # type: ignore[method-assign, assignment]
    Store.append_rows = counting_rows  # type: ignore[method-assign, assignment]
    run_grid(grid, load=fake.load(pace=pace, kind=kind))


def standing(folder: Path) -> int:
    """How many rows the next start would find: those in shards, and in a journal."""
    if not list(folder.glob("rows/*.parquet")):
        return 0
    found = {row[0] for row in rows_of(folder, "row_id")}
    for journal in journals(folder).values():
        found |= set(whole_rows(journal)["row_id"].to_pylist())
    return len(found)


def killed(
    grid: Path,
    pauses: Iterable[float],
    pace: float,
    *,
    from_row: bool = False,
    kind: type[FakeEngine] = FakeEngine,
) -> list[Kill]:
    """Start the run, kill it after each pause, and start it again, until it ends before it can be killed.

    A pause begins with the start, or with the start's first row.
    """
    folder = grid.parent / "runs" / "try"
    rows = len(planned(grid))
    kills = []
    before = 0
    for pause in pauses:
        came, when = FORK.Value("q", 0), FORK.Array("d", rows)
        process = FORK.Process(target=counted_run, args=(grid, pace, kind, came, when))
        process.start()
        while from_row and process.is_alive() and not came.value:
            time.sleep(0.01)
        process.join(pause)
        if not process.is_alive():
            break
        process.kill()
        process.join()
        at, now = time.monotonic(), standing(folder)
        lost = came.value - (now - before)
        kills.append(Kill(came.value, lost, at - when[came.value - lost] if lost else 0.0))
        before = now
    for kill in kills:
        print(f"{kill.came:>7,} rows came, {kill.lost:>5,} of them lost, {kill.seconds:.1f} s of work")
    return kills


def held_to_the_whole(grid: Path, kills: list[Kill], *replaced: str) -> None:
    """Finish the run: it is what a run that nobody killed is, and no kill cost more than it may."""
    folder = run(grid).folder
    whole = run(written(made_folder(grid, "whole"), *replaced)).folder
    assert rows_of(folder, SAME) == rows_of(whole, SAME)
    assert [row[0] for row in rows_of(folder, "row_id")] == sorted(planned(grid))
    assert events(folder).count("extract") == 1 or not kills
    assert max((kill.seconds for kill in kills), default=0.0) <= MOST_SECONDS
    print(f"{len(kills)} kills, {len(rows_of(folder, 'row_id')):,} rows, {sum(k.lost for k in kills):,} lost")


def larger(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The grid with 22 multipliers at all layers: 22,200 rows."""
    multipliers = f"multipliers: {[1 + n / 4 for n in range(22)]}"
    replaced = ("multipliers: [-1, 1]", multipliers, "layers: [0, 3, 5]", "layers: all")
    return written(folder, *replaced), replaced


def test_a_few_kills_at_random(tmp_path: Path) -> None:
    grid = written(tmp_path)
    pauses = np.random.default_rng(1).uniform(0.05, 1.2, 8)
    held_to_the_whole(grid, killed(grid, map(float, pauses), 0.004))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_at_random_from_the_first_second_on(tmp_path: Path) -> None:
    grid, replaced = larger(tmp_path)
    pauses = np.random.default_rng(2).uniform(0.0, 5.0, 20)
    kills = killed(grid, map(float, pauses), 0.15, from_row=True)
    assert len(kills) == 20
    held_to_the_whole(grid, kills, *replaced)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_every_ten_seconds_until_it_is_whole(tmp_path: Path) -> None:
    grid, replaced = larger(tmp_path)
    rows = len(planned(grid))
    kills = killed(grid, [10.0] * 60, 0.05, from_row=True)
    assert 3 <= len(kills) < 60
    # each start got further: less was lost than had come
    assert all(kill.lost < kill.came for kill in kills)
    assert sum(kill.came - kill.lost for kill in kills) <= rows
    held_to_the_whole(grid, kills, *replaced)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills_on_blocks(tmp_path: Path) -> None:
    """Nearly all rows come as blocks, each one prompt with its 433 configurations."""
    replaced = (
        *("layers: [0, 3, 5]", "layers: all"),
        *("multipliers: [-1, 1]", "multipliers: [-1, 0.5, 1]"),
        *("limit: 6}", "limit: 64}"),
    )
    grid = written(tmp_path, *replaced)
    assert len(planned(grid)) >= 20_000
    pauses = np.random.default_rng(3).uniform(0.0, 2.0, 50)
    kills = killed(grid, map(float, pauses), 0.1, from_row=True, kind=FakeBlockEngine)
    assert len(kills) == 50
    held_to_the_whole(grid, kills, *replaced)
