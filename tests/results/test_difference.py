"""`vsteer sql difference`: two runs or two models item by item, against plain loops and scipy's bootstrap."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
from click.testing import CliRunner

from tests.results.made_up import Cell, ask, make_run, sweep
from vsteer import cli
from vsteer.store import shards as sh
from vsteer.store.files import write_sealed

ITEMS, ORDERS = 24, ("original", "swapped")


def says(strength: float, wobble: int) -> Callable[[Cell], float | None]:
    """A run whose vector moves each item by about `strength`, at layer 2 twice as much."""

    def logit(cell: Cell) -> float | None:
        one = cell.steered
        level = math.sin(cell.item) + (0.25 if cell.order == "swapped" else 0.0)
        if not one.vector:
            return level
        if wobble == 5 and cell.item == 3:
            return None
        moved = strength * (one.layer or 0) * (1 + 0.5 * math.cos(wobble * cell.item))
        return level + one.multiplier * moved

    return logit


def effects_of(told: Callable[[Cell], float | None], layer: int, multiplier: float) -> dict[int, float]:
    """Each item's effect by hand: the mean over both letter orders of steered less unsteered."""
    (steered,), found = sweep("toy", (layer,), (multiplier,)), {}
    (plain,) = sweep("", (layer,), (0.0,))
    for item in range(ITEMS):
        moved = []
        for order in ORDERS:
            on, off = told(Cell(steered, item, order)), told(Cell(plain, item, order))
            if on is not None and off is not None:
                moved.append(on - off)
        if moved:
            found[item] = sum(moved) / len(moved)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The second has layer 3 too, and lacks an item that the first has."""
    home = tmp_path_factory.mktemp("runs")
    one = make_run(home / "one", sweep("toy", (1, 2), (-1.0, 1.0)), says(1.0, 2), items=ITEMS, orders=ORDERS)
    two = make_run(
        home / "two", sweep("toy", (1, 2, 3), (-1.0, 1.0)), says(1.4, 5), items=ITEMS, orders=ORDERS
    )
    return one, two


def test_two_runs_are_paired_by_item_and_configuration(runs: tuple[Path, Path]) -> None:
    found = ask("difference", *runs)
    assert [(row["layers"], row["multiplier"]) for row in found] == [
        ([1], -1.0),
        ([1], 1.0),
        ([2], -1.0),
        ([2], 1.0),
    ]
    for row in found:
        (layer,), multiplier = row["layers"], row["multiplier"]
        one, two = (effects_of(told, layer, multiplier) for told in (says(1.0, 2), says(1.4, 5)))
        differences = [two[item] - one[item] for item in sorted(one.keys() & two.keys())]
        assert (row["run"], row["other_run"]) == ("one", "two")
        assert (row["items"], row["items_left_out"]) == (ITEMS - 1, 1)
        assert row["difference"] == pytest.approx(statistics.fmean(differences))
        assert row["other_effect"] - row["effect"] == pytest.approx(row["difference"])
        assert row["difference_se"] == pytest.approx(
            statistics.stdev(differences) / math.sqrt(len(differences))
        )
        assert row["p_value"] == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue)
        # as wide as by Student's t with so few items: Hesterberg's expanded percentiles
        count = len(differences)
        level = 1 - 2 * scipy.stats.norm.cdf(
            scipy.stats.t.ppf(0.025, count - 1) * math.sqrt(count / (count - 1))
        )
        bootstrap = scipy.stats.bootstrap(
            (np.array(differences),), np.mean, confidence_level=level, method="BCa", n_resamples=20_000
        ).confidence_interval
        width = bootstrap.high - bootstrap.low
        assert row["difference_low"] == pytest.approx(bootstrap.low, abs=0.05 * width)
        assert row["difference_high"] == pytest.approx(bootstrap.high, abs=0.05 * width)


def test_the_order_of_the_runs_is_the_direction_of_the_difference(runs: tuple[Path, Path]) -> None:
    there, back = ask("difference", *runs, layer="2"), ask("difference", *reversed(runs), layer="2")
    assert [row["run"] for row in back] == ["two", "two"]
    assert [row["difference"] for row in back] == pytest.approx([-row["difference"] for row in there])
    assert [row["layers"] for row in there] == [[2], [2]]


def test_two_models_are_compared_whether_in_two_runs_or_in_one(tmp_path: Path) -> None:
    steered = sweep("toy", (1,), (1.0,))
    for name, model, strength in (("small", "toy-1b", 1.0), ("large", "toy-7b", 3.0)):
        make_run(tmp_path / name, steered, says(strength, 2), items=ITEMS, model=model)
    (row,) = ask("difference", tmp_path / "small", tmp_path / "large")
    assert (row["model"], row["other_model"]) == ("toy-1b", "toy-7b")
    small, large = (list(effects_of(says(each, 2), 1, 1.0).values()) for each in (1.0, 3.0))
    assert row["difference"] == pytest.approx(statistics.fmean(large) - statistics.fmean(small))
    assert ask("difference", tmp_path / "small") == []
    both = merged(tmp_path / "small", tmp_path / "large")
    (within,) = ask("difference", both)
    assert within == row | {"run": "small", "other_run": "small"}


def merged(one: Path, two: Path) -> Path:
    """The first run with the second's rows and configurations too, as of a grid with both models."""
    (shard,) = sh.list_shards(two / "rows")
    shutil.copy(shard, one / "rows" / sh.shard_name("part", 9, sh.crc_of(shard)))
    tables = [pq.read_table(folder / "configs.parquet") for folder in (one, two)]
    write_sealed(one / "configs.parquet", pa.concat_tables(tables))
    return one


def test_few_items_have_no_interval_and_it_says_why(tmp_path: Path) -> None:
    for name, strength in (("one", 1.0), ("two", 2.0)):
        make_run(tmp_path / name, sweep("toy", (1,), (1.0,)), says(strength, 2), items=4)
    (row,) = ask("difference", tmp_path / "one", tmp_path / "two")
    assert (row["difference_low"], row["difference_high"]) == (None, None)
    assert row["why"] == "no interval: fewer than 10 items"


def test_the_command_line_and_typed_sql(runs: tuple[Path, Path]) -> None:
    folders = list(map(str, runs))

    def asked(*arguments: str) -> list[dict[str, Any]]:
        done = CliRunner().invoke(cli.main, ["sql", *arguments, *folders, "--format", "json"])
        assert done.exit_code == 0, done.output
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    rows = asked("difference", "--set", "layer=1")
    assert [row["difference_low"] is None for row in rows] == [False, False]
    (typed,) = asked("-c", "select count(*) as n from differences where measure = 'logit_diff'")
    assert typed["n"] == 4
