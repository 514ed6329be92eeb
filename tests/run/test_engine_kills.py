"""`vsteer run` with the real engine, killed at random moments from its first second on, and another run every
ten seconds until it is whole: no process is left behind, and each row stands once, as if nobody had."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.engine.test_orphans import marked, parents
from tests.engine.test_run_killed import rows
from vsteer.grid.spec import read_grid
from vsteer.plan.plan import make_plans
from vsteer.store.status import status

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(3600)]

GRID = """\
version: 1
name: killed
model: {{id: tiny-llama, dtype: float32}}
engine: {{max_model_len: 512, max_num_seqs: 64, kv_cache_gib: 0.25, enforce_eager: true}}
vectors:
  v: {{data: sentiment, token: last, norm: {{residual: 0.5}}}}
grid:
  - {{vector: v, layers: all, multipliers: {{from: -2, to: 2, step: 0.2}}, positions: [all, after_prompt]}}
controls: {{random_vectors: 3}}
evaluations:
  - {{kind: choice, data: sentiment, limit: 20}}
  - {{kind: open_ended, data: sentiment, limit: {texts}, max_tokens: 24}}
"""
KILLS, LATEST = 20, 32.0
EVERY = 10.0
# How long processes may outlive the run that started them.
MOST_SECONDS = 10.0


class Killed:
    """A grid whose run is started and killed again and again."""

    def __init__(self, folder: Path, texts: int) -> None:
        folder.mkdir()
        self.grid, self.folder = folder / "grid.yaml", folder / "runs" / "killed"
        self.grid.write_text(GRID.format(texts=texts))
        self.process: subprocess.Popen[bytes] | None = None
        self.kills: list[
            tuple[float, int, float]
        ] = []  # when, how many rows stood, how long processes stayed

    def start(self) -> subprocess.Popen[bytes]:
        with (self.grid.parent / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vsteer", "run", str(self.grid)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "VSTEER_TEST_OF": str(self.grid)},
            )
        return self.process

    def standing(self) -> int:
        return status(self.folder).done if (self.folder / "rows").is_dir() else 0

    def alive(self) -> list[int]:
        return [pid for pid in parents() if marked(pid, f"VSTEER_TEST_OF={self.grid}")]

    def kill(self, after: float) -> None:
        """Kill the run's own process, and nothing that it started."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        died = time.monotonic()
        while self.alive():
            assert time.monotonic() - died < MOST_SECONDS, self.alive()
            time.sleep(0.02)
        self.kills.append((after, self.standing(), time.monotonic() - died))
        stood, gone = self.kills[-1][1:]
        print(
            f"kill {len(self.kills)} after {after:.1f} s: {stood:,} rows stand, no process after {gone:.2f} s"
        )

    def finish(self) -> None:
        """Let the run end by itself. Its own check finds nothing, and each row stands once."""
        assert self.start().wait(1200) == 0, (self.grid.parent / "log").read_text()[-3000:]
        checked = [sys.executable, "-m", "vsteer", "check", str(self.grid)]
        found = subprocess.run(checked, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout
        planned = sorted(row.row_id for plan in make_plans(read_grid(self.grid)) for row in plan.rows())
        assert [row[0] for row in rows(self.folder)] == planned
        print(f"{len(self.kills)} kills, {len(planned):,} rows; {found.stdout.strip()}")


def held_to_the_whole(killed: Killed, folder: Path, texts: int) -> None:
    """What nobody killed has the same answers, texts and counts of steered tokens."""
    whole = Killed(folder, texts)
    whole.finish()
    for one, other in zip(rows(killed.folder), rows(whole.folder), strict=True):
        assert (one[0], one[1], one[3], one[4]) == (other[0], other[1], other[3], other[4])
        if one[2] is not None and other[2] is not None:
            np.testing.assert_allclose(one[2], other[2], atol=1e-4)


def test_twenty_kills_at_random_from_the_first_second_on(tmp_path: Path) -> None:
    killed = Killed(tmp_path / "killed", 40)
    for pause in np.random.default_rng(3).uniform(1.0, LATEST, KILLS):
        process = killed.start()
        began = time.monotonic()
        while time.monotonic() - began < pause:
            assert process.poll() is None, "the run was over before it could be killed"
            time.sleep(0.02)
        killed.kill(pause)
    standing = [stood for _, stood, _ in killed.kills]
    assert standing == sorted(standing)
    assert standing[0] == 0 < standing[-1]
    killed.finish()
    held_to_the_whole(killed, tmp_path / "whole", 40)


def test_killed_every_ten_seconds_until_it_is_whole(tmp_path: Path) -> None:
    """Ten seconds after a start's first row: the start itself may take longer than that."""
    killed = Killed(tmp_path / "killed", 20)
    while True:
        process, before, began = killed.start(), killed.standing(), time.monotonic()
        while process.poll() is None and killed.standing() == before:
            time.sleep(0.5)
        first = time.monotonic()
        while process.poll() is None and time.monotonic() - first < EVERY:
            time.sleep(0.1)
        if process.poll() is not None:
            break
        killed.kill(time.monotonic() - began)
        assert killed.kills[-1][1] > before, "a start got no further"
        assert len(killed.kills) < 60
    assert len(killed.kills) >= 3
    killed.finish()
    held_to_the_whole(killed, tmp_path / "whole", 20)
