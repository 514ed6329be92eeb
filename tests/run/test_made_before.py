"""A run that was made before the files of vsteer were moved goes on: its rows stand, and no id has changed.

tests/run/made_before/ is a folder that the code of commit 019e93f left behind half-way, with 285 good rows of
588 and three failed ones. `row_ids.txt` holds the ids of all rows as that code planned them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest

from tests.run import fake
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan.plan import make_plans
from vsteer.run.start import run_grid

MADE_BEFORE = Path(__file__).with_name("made_before")


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    resolve("tiny-llama")
    return Path(shutil.copytree(MADE_BEFORE, tmp_path / "made_before")) / "grid.yaml"


def test_no_id_has_changed(grid: Path) -> None:
    (plan,) = make_plans(read_grid(grid))
    assert sorted(row.row_id for row in plan.rows()) == (MADE_BEFORE / "row_ids.txt").read_text().split()


def test_the_run_goes_on_and_its_rows_stand(grid: Path) -> None:
    before = rows(MADE_BEFORE / "runs" / "before")
    outcome = run_grid(grid, load=fake.load())
    after = rows(outcome.folder)
    assert {key: after[key] for key in before} == before
    assert sorted(after) == (MADE_BEFORE / "row_ids.txt").read_text().split()
    assert not (outcome.folder / "set-aside").exists()


def rows(folder: Path) -> dict[str, tuple[object, ...]]:
    found = duckdb.sql(f"select * from read_parquet('{folder}/rows/*.parquet')")
    place = found.columns.index("row_id")
    return {row[place]: row for row in found.fetchall()}
