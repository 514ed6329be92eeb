"""Tables that are derived from a run, cut or emptied: the next start makes them anew, and the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.run import fake
from vsteer.analysis.statistics import bring_up_to_date
from vsteer.run.start import Outcome, run_grid
from vsteer.store.events import read_events

GRID = """\
version: 1
name: try
model: {id: tiny-llama, dtype: float32}
vectors: {v: {data: sentiment, token: last}}
grid: [{vector: v, layers: [1, 4], multipliers: [-1, 1]}]
evaluations:
  - {kind: choice, data: sentiment, limit: 6}
  - {kind: open_ended, name: open, data: sentiment, limit: 3, max_tokens: 4}
"""
TABLES = (
    "vectors/norms.parquet",
    "statistics/intervals.parquet",
    "statistics/peaks.parquet",
    "scores/perplexity-*.parquet",
    "configs.parquet",
    "prompts.parquet",
)


def start(folder: Path) -> Outcome:
    return run_grid(folder / "grid.yaml", derive=bring_up_to_date, load=fake.load())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "grid.yaml").write_text(GRID)
    start(folder)
    return folder


@pytest.mark.parametrize("cut", ["emptied", "halved", "overwritten"])
@pytest.mark.parametrize("name", TABLES)
def test_a_damaged_table_is_made_anew(tmp_path: Path, made: Path, name: str, cut: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    (table,) = (folder / "runs" / "try").glob(name)
    before, content = contents(table), table.read_bytes()
    table.write_bytes(
        {
            "emptied": b"",
            "halved": content[: len(content) // 2],
            "overwritten": content[:4] + b"\0" * (len(content) - 4),
        }[cut]
    )
    good = start(folder).good
    assert contents(table) == before
    assert good == start(made).good
    assert not [event for event in read_events(folder / "runs" / "try") if event["event"] == "no_statistics"]


def contents(table: Path) -> list[str]:
    return sorted(map(repr, pq.read_table(table).to_pylist()))
