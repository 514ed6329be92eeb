"""`vsteer run` with real engines on several nodes: engines, nodes and the run itself are killed, and every
row is there once, as one engine by itself computes it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from click.testing import CliRunner

from tests.engine.test_orphans import descendants, parents
from tests.engine.test_run_killed import RUN, rows
from vsteer.cli import main
from vsteer.grid.spec import read_grid
from vsteer.plan.plan import make_plans
from vsteer.run.engines_file import read
from vsteer.store.events import Event, read_events
from vsteer.store.schema import FORKS
from vsteer.store.status import status

GRID = """\
version: 1
name: many
model: {id: tiny-llama, dtype: float32}
engine: {%smax_model_len: 512, max_num_seqs: 64, kv_cache_gib: 0.25, enforce_eager: true}
vectors:
  v: {data: sentiment, token: last, norm: {residual: 0.5}}
grid:
  - {vector: v, layers: all, multipliers: {from: -2, to: 2, step: 0.2}, positions: [all, after_prompt]}
controls: {random_vectors: %d}
evaluations:
  - {kind: choice, data: sentiment, limit: %d}
  - {kind: open_ended, data: sentiment, limit: %d, max_tokens: 24, coherence: false}
"""
NEEDS_TWO = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two engines want two cores")


def grid_file(folder: Path, replicas: str, controls: int, questions: int, texts: int) -> Path:
    folder.mkdir()
    path = folder / "grid.yaml"
    engine = f"replicas: {replicas}, " if replicas else ""
    path.write_text(GRID % (engine, controls, questions, texts))
    return path


def start(grid: Path, *options: str) -> subprocess.Popen[str]:
    """As tests/engine/test_run_killed.py: what was computed is written after a second already."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, "run", str(grid), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def folder_of(grid: Path) -> Path:
    return grid.parent / "runs" / "many"


def named(grid: Path, event: str) -> list[Event]:
    return [found for found in read_events(folder_of(grid)) if found["event"] == event]


def stands(grid: Path) -> int:
    return status(folder_of(grid)).done if (folder_of(grid) / "rows").is_dir() else 0


def wait(process: subprocess.Popen[str], until: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not until():
        if process.poll() is not None:
            raise AssertionError(f"the run was over too early: {process.communicate()[1][-3000:]}")
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.2)


def shown(grid: Path) -> str:
    return CliRunner().invoke(main, ["status", str(grid)]).output


def core_of(started: Event) -> int:
    """The process of vLLM's that computes, under the one that Ray started for an engine; 0: it is gone."""
    return max(descendants(started["pid"]) & set(parents()), default=0)


def engines_alive(grid: Path) -> list[int]:
    return [started["pid"] for started in named(grid, "replica_start") if started["pid"] in parents()]


def finished(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err[-3000:]


def assert_same_rows(several: Path, one: Path) -> None:
    planned = sorted(row.row_id for plan in make_plans(read_grid(one)) for row in plan.rows())
    found, expected = rows(folder_of(several)), rows(folder_of(one))
    assert [row[0] for row in found] == [row[0] for row in expected] == planned
    for row, other in zip(found, expected, strict=True):
        assert row[1] == other[1] == "ok"
        assert row[3:] == other[3:]  # the tokens of texts, and how many were steered
        if row[2] is not None and other[2] is not None:
            np.testing.assert_allclose(row[2], other[2], atol=1e-4)
    done = CliRunner().invoke(main, ["check", str(several)])
    assert done.exit_code == 0, done.output
    assert "whole" in done.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def by_one_engine(folder: Path, controls: int, questions: int, texts: int) -> Path:
    """The run by one engine in its own process, without Ray."""
    grid = folder / f"one-{controls}-{questions}" / "grid.yaml"
    if not grid.exists():
        grid_file(grid.parent, "", controls, questions, texts)
        finished(start(grid))
    return grid


@NEEDS_TWO
@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_goes_and_another_comes(folder: Path, nodes: Any) -> None:
    size = (1, 20, 3)
    one = by_one_engine(folder, *size)
    grid = grid_file(folder / "nodes", "{min: 1, max: 4}", *size)
    process = start(grid, "--ray", nodes.address)
    try:
        wait(process, lambda: len(named(grid, "replica_start")) == 2 and stands(grid) > 100)
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
        gone = time.monotonic()
        wait(process, lambda: len(named(grid, "replica_died")) == 1)
        noticed = time.monotonic() - gone
        # the engine that is left would have done everything before another is up
        (left,) = (core for core in map(core_of, named(grid, "replica_start")) if core)
        os.kill(left, signal.SIGSTOP)
        nodes.add_node(num_cpus=1)
        wait(process, lambda: len(named(grid, "replica_start")) == 3)
        back = time.monotonic() - gone
        wait(process, lambda: "2 of up to 4 are up" in shown(grid))
        assert "1 death," in shown(grid)
        os.kill(left, signal.SIGCONT)
        finished(process)
    finally:
        process.kill()
    (died,) = named(grid, "replica_died")
    assert "is gone" in died["error"]
    print(
        f"the node's death was known after {noticed:.1f} s, {died['given_back']} blocks or requests were "
        f"done again, and the new node's engine was up {back:.1f} s after the death"
    )
    by = duckdb.sql(f"select distinct engine from '{folder_of(grid)}/rows/*.parquet'").fetchall()
    assert sorted(by) == [("vllm",), (f"vllm{FORKS}",)]
    assert_same_rows(grid, one)
    at, engines = read(folder_of(grid))
    assert at
    assert sum(engine.rows for engine in engines) >= len(rows(folder_of(grid)))


@NEEDS_TWO
@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_engines_on_this_machine_stay_on_their_cores(folder: Path) -> None:
    """Without a cluster; one engine's core process is killed, which its host must notice."""
    size = (1, 20, 3)
    one = by_one_engine(folder, *size)
    grid = grid_file(folder / "here", "2", *size)
    process = start(grid)
    try:
        wait(process, lambda: len(named(grid, "replica_start")) == 2 and stands(grid) > 100)
        cores = [core_of(found) for found in named(grid, "replica_start")]
        first, second = map(os.sched_getaffinity, cores)
        assert not first & second
        os.kill(cores[0], signal.SIGKILL)
        wait(process, lambda: len(named(grid, "replica_died")) == 1)
        finished(process)
    finally:
        process.kill()
    assert_same_rows(grid, one)


@NEEDS_TWO
@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_twenty_kills_at_random(folder: Path, nodes: Any) -> None:
    """Of engines, of nodes, and of the run, which is then started again."""
    size = (3, 60, 20)
    rng = np.random.default_rng(0)
    one = by_one_engine(folder, *size)
    grid = grid_file(folder / "kills", "{min: 1, max: 4}", *size)
    options = ("--ray", nodes.address)
    process = start(grid, *options)
    kills = {"engine": 0, "node": 0, "run": 0}
    try:
        for n in range(20):
            before = stands(grid)
            wait(process, lambda before=before: stands(grid) > before)  # type: ignore[misc]
            time.sleep(float(rng.uniform(0, 2)))
            what = ("engine", "engine", "node", "run")[n % 4]
            if process.poll() is not None:
                break
            if what == "run":
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                process = start(grid, *options)
            elif what == "node":
                nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
                nodes.add_node(num_cpus=1)
            else:
                # what an engine computed before it died may be written after that
                wait(process, lambda: engines_alive(grid) != [])
                some = engines_alive(grid)
                os.kill(some[rng.integers(len(some))], signal.SIGKILL)
            kills[what] += 1
        finished(process)
    finally:
        process.kill()
    print(f"{kills}, {len(rows(folder_of(grid))):,} rows")
    assert sum(kills.values()) == 20
    assert_same_rows(grid, one)
