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
from tests.store import makers
from vsteer.grid.spec import read_grid
from vsteer.models import resolve
from vsteer.plan.plan import make_plans
from vsteer.results.views import connect_runs
from vsteer.run.start import run_grid
from vsteer.store.check import check
from vsteer.store.planned import Planned
from vsteer.store.store import open_store

MADE_BEFORE = Path(__file__).with_name("made_before")


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    resolve("tiny-llama")
    return Path(shutil.copytree(MADE_BEFORE, tmp_path / "made_before")) / "grid.yaml"


def test_no_id_has_changed(grid: Path) -> None:
    (plan,) = make_plans(read_grid(grid))
    assert sorted(row.row_id for row in plan.rows()) == (MADE_BEFORE / "row_ids.txt").read_text().split()


def test_the_run_goes_on_and_its_rows_stand(grid: Path) -> None:
    files = f"read_parquet('{MADE_BEFORE}/runs/before/rows/*.parquet')"
    names = ", ".join(duckdb.sql(f"select * from {files}").columns)
    before = rows(MADE_BEFORE / "runs" / "before", names)
    outcome = run_grid(grid, load=fake.load())
    after = rows(outcome.folder, names)
    assert {key: after[key] for key in before} == before
    assert sorted(after) == (MADE_BEFORE / "row_ids.txt").read_text().split()
    assert not (outcome.folder / "set-aside").exists()


def test_what_files_of_that_time_lack_is_null(grid: Path) -> None:
    folder = grid.parent / "runs" / "before"
    planned = Planned(part for plan in make_plans(read_grid(grid)) for part in plan.parts())
    assert {finding.what for finding in check(folder, planned)} == {"missing", "errors"}
    # between the files that stand and a compaction there are both kinds
    with open_store(folder) as store:
        store.append(makers.row(5000, condition_met=True))
        store.append(makers.text_row(5001, condition_met=False, steered_tokens=0))
    with connect_runs([folder]) as database:
        found = database.sql("select condition_met, count(*) from rows group by all order by all").fetchall()
        configs = database.sql("select distinct when_vector, when_threshold from configs").fetchall()
    assert found == [(False, 1), (True, 1), (None, 288)]
    assert configs == [(None, None)]
    with open_store(folder) as store:
        assert store.compact()
    with connect_runs([folder]) as database:
        assert (
            database.sql("select condition_met, count(*) from rows group by all order by all").fetchall()
            == found
        )


def rows(folder: Path, names: str) -> dict[str, tuple[object, ...]]:
    found = duckdb.sql(f"select {names} from read_parquet('{folder}/rows/*.parquet')")
    place = found.columns.index("row_id")
    return {row[place]: row for row in found.fetchall()}
