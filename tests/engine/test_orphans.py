"""A driver that is killed takes its engine along: no process is left to hold the device's memory."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DRIVER = """
from vsteer.engine.driver import VllmEngine
from vsteer.engine.options import EngineOptions
from vsteer.models import resolve

if __name__ == "__main__":
    options = EngineOptions(max_model_len=256, kv_cache_gib=0.1, enforce_eager=True)
    engine = VllmEngine(resolve("tiny-llama").model, dtype="float32", options=options)
    print("started", flush=True)
    input()
"""


def parents() -> dict[int, int]:
    """The parent of every process that still runs."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[int(stat.parent.name)] = int(parent)
    return found


def descendants(of: int) -> set[int]:
    found, tree = {of}, parents()
    while new := {child for child, parent in tree.items() if parent in found} - found:
        found |= new
    return found - {of}


@pytest.mark.engine
@pytest.mark.slow
def test_a_killed_driver_leaves_no_engine_behind(tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert driver.stdout is not None
    assert any(line == b"started\n" for line in driver.stdout)
    engine = descendants(driver.pid)
    assert len(engine) >= 2  # the engine's core and a worker
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    deadline = time.monotonic() + 30
    while (left := engine & parents().keys()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left
