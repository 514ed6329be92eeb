"""Runs in a notebook: silent, interrupted like a cell, asked in SQL; and what `import vsteer` hands out."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vsteer
from tests.run import fake
from vsteer.analysis import statistics
from vsteer.api.answer import Answer
from vsteer.errors import EngineError, StoreError, UsageError
from vsteer.grid.problems import GridError
from vsteer.results.statistics_files import statistics_are_current
from vsteer.run import start

GRID: dict[str, Any] = {
    "version": 1,
    "name": "try",
    "model": {"id": "tiny-llama", "dtype": "float32"},
    "vectors": {"v": {"data": "sentiment", "token": "last"}},
    "grid": [{"vector": "v", "layers": (1, 3), "multipliers": [-1, 1]}],
    "evaluations": [{"kind": "choice", "data": "sentiment", "limit": 4}],
}
# 1 baseline and 2 layers x 2 multipliers, of 4 items; the fake finds some prompts too long
ROWS = 5 * 4


@pytest.fixture
def run(tmp_path: Path, no_vllm: None) -> vsteer.Run:
    with pytest.warns(UserWarning, match="rows failed"):
        return vsteer.run(GRID, folder=tmp_path)


def test_a_dictionary_is_run(run: vsteer.Run, tmp_path: Path) -> None:
    assert run.folder == tmp_path / "runs" / "try"
    assert run.status.done + run.status.errors == run.status.planned == ROWS
    assert statistics_are_current(run.folder)
    assert repr(run) == f"<run {run.folder}: {run.status.done} of {ROWS} rows, {run.status.errors} failed>"
    # the same call goes on, and so does one with a file
    again = vsteer.open_run(str(run.folder))
    assert again.status.done == run.status.done


@pytest.mark.filterwarnings("ignore:.*rows failed")
def test_a_run_is_silent_unless_progress_is_wanted(
    tmp_path: Path, no_vllm: None, capfd: pytest.CaptureFixture[str]
) -> None:
    vsteer.run(GRID, folder=tmp_path)
    assert capfd.readouterr() == ("", "")
    vsteer.run(GRID, folder=tmp_path, fresh=True, progress=True)
    shown = capfd.readouterr().err
    assert f"try: {ROWS} rows" in shown
    assert "working out the statistics" in shown


def test_a_quiet_run_still_warns(tmp_path: Path, no_vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "bring_up_to_date", lambda folder: "warning: no statistics")
    with pytest.warns(UserWarning, match="^no statistics$"), pytest.warns(UserWarning, match="rows failed"):
        vsteer.run(GRID, folder=tmp_path)


def test_an_engine_that_is_given_up_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "load_vllm", lambda plan, *_, **__: fake.fake_engine(plan, dies_after=3))
    with pytest.raises(EngineError, match="the engine died"):
        vsteer.run(GRID, folder=tmp_path)
    # what was done stands
    assert vsteer.open_run(tmp_path / "runs" / "try").status.planned == ROWS


def test_an_interrupted_run_interrupts_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "load_vllm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vsteer.run(GRID, folder=tmp_path)
    assert vsteer.open_run(tmp_path / "runs" / "try").status.done == 0


def test_mistakes_are_reported_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(GridError, match=r"^grid\[0\]\.layers: layer 9 does not exist"):
        vsteer.run({**GRID, "grid": [{"vector": "v", "layers": 9, "multipliers": 1}]}, folder=tmp_path)
    with pytest.raises(StoreError, match="is not a run's folder"):
        vsteer.open_run(tmp_path)


def test_sql_by_a_query_s_name_or_in_words(run: vsteer.Run) -> None:
    answer = run.sql("select status, count(*)::int as rows from rows group by all order by all")
    assert answer.fetchall() == [("error", run.status.errors), ("ok", run.status.done)]
    assert len(answer) == 2
    assert answer.arrow().column_names == ["status", "rows"]
    assert "status" in repr(answer)
    assert str(run.status.done) in repr(answer)
    assert run.sql("layer_peaks").arrow().num_rows > 0
    assert run.sql("select getvariable('layer') as x", layer=3).fetchall() == [("3",)]
    with pytest.raises(UsageError, match=r"(?s)no query 'layer_peeks'.*did you mean 'layer_peaks'"):
        run.sql("layer_peeks")
    with pytest.raises(UsageError, match="DuckDB can't answer it"):
        run.sql("select nothing from nowhere")


def test_a_query_that_lacks_statistics_says_so(run: vsteer.Run) -> None:
    shutil.rmtree(run.folder / "statistics")
    with pytest.warns(UserWarning, match="its statistics are not there; vsteer stats .* makes them"):
        run.sql("layer_peaks")


def test_df_is_pandas_where_it_is_installed(run: vsteer.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = run.sql("select 1 as x")
    monkeypatch.setattr("vsteer.api.answer.find_spec", lambda name: None)
    assert answer.df() is answer.arrow()
    monkeypatch.setattr("vsteer.api.answer.find_spec", lambda name: {"pandas": "installed"}[name])
    table: Any = SimpleNamespace(to_pandas=lambda: "a frame")
    assert Answer(table).df() == "a frame"


def test_the_report_is_a_page(run: vsteer.Run, tmp_path: Path) -> None:
    assert run.report() == run.folder / "report.html"
    page = run.report(tmp_path / "page.html")
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_import_is_light_and_run_stays_a_function() -> None:
    code = (
        "import sys, vsteer\n"
        "heavy = {'torch', 'vllm', 'transformers', 'numpy', 'pyarrow', 'duckdb', 'rich', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "import vsteer.run.interrupt\n"
        "from vsteer.run.start import run_grid\n"
        "assert {'Engine', 'Run', 'extract', 'load_vector', 'open_run', 'run'} <= set(dir(vsteer))\n"
        "assert callable(vsteer.run) and callable(vsteer.open_run) and callable(vsteer.Engine)\n"
        "assert not {'torch', 'vllm'} & set(sys.modules), 'until an engine is made'\n"
        "try: vsteer.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("module 'vsteer' has no attribute 'nothing'\n", "")
