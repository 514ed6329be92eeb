"""`vsteer run` with two real engines: one run, one store, and the killing of either is survived."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.engine.test_orphans import descendants, parents
from tests.engine.test_run_killed import GRID, rows, start
from vsteer.grid.spec import read_grid
from vsteer.plan.plan import make_plans
from vsteer.store.events import Event, read_events
from vsteer.store.status import status

# so many rows that a replica has the time to come back
LARGE = GRID.replace("limit: 12", "limit: 60")


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def hosts(run: int) -> list[int]:
    """The run's replicas by their processes, in the order of their start; the resource tracker is none."""
    return sorted(pid for pid, parent in parents().items() if parent == run and "spawn_main" in command(pid))


def named(folder: Path, event: str) -> list[Event]:
    return [found for found in read_events(folder) if found["event"] == event]


def wait_for(folder: Path, event: str, times: int, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while len(named(folder, event)) < times:
        assert time.monotonic() < end, f"no {event}"
        time.sleep(0.1)


def wait_until_rows(folder: Path, more_than: int, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (folder / "manifest.json").exists() and status(folder).done > more_than:
            return
        time.sleep(0.3)
    raise AssertionError("no rows came")


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two replicas want two cores")
def test_two_replicas_survive_the_killing_of_either(tmp_path: Path) -> None:
    folders = []
    for name in ("two", "one"):
        folder = tmp_path / name
        folder.mkdir()
        grid = folder / "grid.yaml"
        grid.write_text(LARGE if name == "one" else LARGE.replace("engine: {", "engine: {replicas: 2, "))
        run = folder / "runs" / "killed"
        process = start(grid)
        try:
            if name == "two":
                wait_until_rows(run, 0)
                first, second = hosts(process.pid)
                cores = [os.sched_getaffinity(pid) for pid in (first, second)]
                assert not cores[0] & cores[1]
                # of one the host, of the other, once the first is back, the engine's core alone
                os.kill(first, signal.SIGKILL)
                wait_for(run, "replica_start", 3)
                assert process.poll() is None, "the run was over before it could be killed"
                core = min(pid for pid in descendants(second) if parents().get(pid) == second)
                os.kill(core, signal.SIGKILL)
                wait_for(run, "replica_died", 2)
            _, err = process.communicate(timeout=900)
            assert process.returncode == 0, err[-3000:]
        finally:
            process.kill()
        folders.append(run)
    died = named(folders[0], "replica_died")
    print(f"{len(rows(folders[0]))} rows;", *died, sep="\n")
    assert {one["replica"] for one in died} == {0, 1}
    assert not named(folders[0], "engine_died")
    assert len(named(folders[0], "engine_start")) == 1
    planned = sorted(row.row_id for plan in make_plans(read_grid(grid)) for row in plan.rows())
    two, one = map(rows, folders)
    assert [row[0] for row in two] == [row[0] for row in one] == planned
    for row, other in zip(two, one, strict=True):
        assert row[1] == other[1] == "ok"
        assert row[3:] == other[3:]
        if row[2] is not None and other[2] is not None:
            np.testing.assert_allclose(row[2], other[2], atol=1e-4)
