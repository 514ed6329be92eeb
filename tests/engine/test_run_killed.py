"""`vsteer run` on the real engine, killed at random moments: nothing is lost, doubled or changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pytest

from vsteer.grid import read_grid
from vsteer.plan import make_plans
from vsteer.store.status import status

KILLS = 6
GRID = """\
version: 1
name: killed
model: {id: tiny-llama, dtype: float32}
engine: {max_model_len: 512, max_num_seqs: 64, kv_cache_gib: 0.25, enforce_eager: true}
vectors:
  v: {data: sentiment, token: last, norm: {residual: 0.5}}
grid:
  - {vector: v, layers: all, multipliers: [-2, -1, 1, 2], positions: [all, after_prompt]}
controls: {random_vectors: 3}
evaluations:
  - {kind: choice, data: sentiment, limit: 12}
  - {kind: open_ended, data: sentiment, limit: 12, max_tokens: 24}
"""
COLUMNS = "row_id, status, choice_logprobs, token_ids, steered_tokens"


def start(grid: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vsteer", "run", str(grid)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def rows(folder: Path) -> list[tuple[str, str, list[float] | None, list[int] | None, int]]:
    found: list[tuple[str, str, list[float] | None, list[int] | None, int]] = duckdb.sql(
        f"select {COLUMNS} from read_parquet('{folder}/rows/*.parquet') order by row_id"
    ).fetchall()
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = []
    for name, kills in (("killed", KILLS), ("whole", 0)):
        folder = tmp_path / name
        folder.mkdir()
        grid = folder / "grid.yaml"
        grid.write_text(GRID)
        run = folder / "runs" / "killed"
        times = 0
        while times < kills:
            process = start(grid)
            # the engine is up once the table of its vectors was written; then a moment more
            began = time.monotonic()
            while process.poll() is None and time.monotonic() - began < 120:
                if (run / "events.jsonl").exists() and engine_starts(run) > times:
                    break
                time.sleep(0.1)
            time.sleep(float(rng.uniform(0.2, 12)))
            alive = process.poll() is None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert alive, "the run was over before it could be killed"
            times += 1
            print(f"kill {times}: {status(run).done} rows stand")
        done = start(grid)
        _, err = done.communicate(timeout=900)
        assert done.returncode == 0, err[-3000:]
        folders.append(run)
    planned = sorted(row.row_id for plan in make_plans(read_grid(grid)) for row in plan.rows())
    killed, whole = map(rows, folders)
    assert [row[0] for row in killed] == [row[0] for row in whole] == planned
    for one, other in zip(killed, whole, strict=True):
        assert one[1] == other[1] == "ok"
        assert one[3:] == other[3:]
        if one[2] is not None and other[2] is not None:
            np.testing.assert_allclose(one[2], other[2], atol=1e-4)


def engine_starts(run: Path) -> int:
    return (run / "events.jsonl").read_text().count('"engine_start"')
