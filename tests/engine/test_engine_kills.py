"""`vsteer run` with the real engine, killed at random moments from its first second on, and another run every
ten seconds until it is whole: no process is left behind, and each row stands once, as if nobody had."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.engine.test_orphans import marked, parents
from tests.engine.test_run_killed import GRID, rows
from tests.run.test_kills import standing
from vsteer.grid.spec import read_grid
from vsteer.plan.plan import make_plans

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(3600)]

QUESTIONS = "{kind: choice, data: sentiment, limit: 100}"
KILLS = 20
EVERY = 10.0
# How long processes may outlive the run that started them.
MOST_SECONDS = 30.0
MARK = "VSTEER_TEST_OF"


@dataclass(frozen=True)
class Kill:
    """How long after a start it was, how many rows stood then, and how long a process outlived it."""

    after: float
    stood: int
    outlived: float


class Killed:
    """A grid whose run is started and killed again and again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.grid, self.folder = folder / "grid.yaml", folder / "runs" / "killed"
        # questions are computed so fast that with fewer the run may be over before its last kill
        self.grid.write_text(
            (GRID % "float32").replace("{kind: choice, data: sentiment, limit: 20}", QUESTIONS)
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.kills: list[Kill] = []

    def start(self) -> subprocess.Popen[bytes]:
        with (self.grid.parent / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vsteer", "run", str(self.grid)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, MARK: str(self.grid)},
            )
        return self.process

    def standing(self) -> int:
        """How many rows the next start would find, in shards and in a journal."""
        return standing(self.folder)

    def gets_on(self) -> bool:
        """Wait until there is a row more than at the start; False where the run ends first."""
        assert self.process is not None
        before = self.standing()
        while self.standing() == before:
            if self.process.poll() is not None:
                return False
            time.sleep(1)
        return True

    def alive(self) -> list[int]:
        return [pid for pid in parents() if marked(pid, f"{MARK}={self.grid}")]

    def end(self) -> None:
        """Kill whatever a failed test leaves."""
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)

    def kill(self, after: float) -> None:
        """Kill the run's own process, and nothing that it started."""
        assert self.process is not None
        assert self.process.poll() is None, "the run was over before it could be killed"
        self.process.kill()
        self.process.wait()
        died = time.monotonic()
        while self.alive():
            assert time.monotonic() - died < MOST_SECONDS, self.alive()
            time.sleep(0.02)
        outlived = time.monotonic() - died
        kill = Kill(after, self.standing(), outlived)
        self.kills.append(kill)
        print(
            f"kill {len(self.kills)} after {after:.1f} s: {kill.stood:,} rows stand, no process after"
            f" {outlived:.2f} s"
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


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Killed]:
    run = Killed(tmp_path / "killed")
    yield run
    run.end()


def held_to_the_whole(killed: Killed) -> None:
    """What nobody killed has the same answers, texts and counts of steered tokens."""
    whole = Killed(killed.grid.parent.with_name("whole"))
    try:
        whole.finish()
    finally:
        whole.end()
    for one, other in zip(rows(killed.folder), rows(whole.folder), strict=True):
        assert (one[0], one[1], one[3], one[4]) == (other[0], other[1], other[3], other[4])
        if one[2] is not None and other[2] is not None:
            np.testing.assert_allclose(one[2], other[2], atol=1e-4)


def test_twenty_kills_at_random_from_the_first_second_on(killed: Killed) -> None:
    """Each other one while the engine starts, and each other one among rows."""
    random = np.random.default_rng(3)
    killed.start()
    began = time.monotonic()
    assert killed.gets_on(), "the run was over before it could be killed"
    starting = time.monotonic() - began
    killed.kill(starting)
    for number in range(1, KILLS):
        killed.start()
        began = time.monotonic()
        if number % 2:
            time.sleep(random.uniform(1.0, starting))
        else:
            assert killed.gets_on(), "the run was over before it could be killed"
            time.sleep(random.uniform(0.0, 2.0))
        killed.kill(time.monotonic() - began)
    stood = [kill.stood for kill in killed.kills]
    assert stood == sorted(stood)
    assert len(set(stood)) >= KILLS // 2, "a start with rows left none"
    killed.finish()
    held_to_the_whole(killed)


def test_killed_every_ten_seconds_until_it_is_whole(killed: Killed) -> None:
    """Ten seconds after a start's first row: the start itself may take longer than that."""
    while True:
        process, before, began = killed.start(), killed.standing(), time.monotonic()
        killed.gets_on()
        first = time.monotonic()
        while process.poll() is None and time.monotonic() - first < EVERY:
            time.sleep(0.1)
        if process.poll() is not None:
            break
        killed.kill(time.monotonic() - began)
        assert killed.kills[-1].stood > before, "a start got no further"
        assert len(killed.kills) < 60
    assert len(killed.kills) >= 2
    killed.finish()
    held_to_the_whole(killed)
