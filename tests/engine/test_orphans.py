"""A driver that is killed takes its engine along: no process is left to hold the device's memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


KILLED_AFTER = (0.5, 1.0, 2.0, 3.0, 5.0)


@contextmanager
def driver(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Callable[[], set[int]]]]:
    """A process that starts an engine, and what finds all of its living processes, whoever adopted them."""
    script = folder / "driver.py"
    script.write_text(DRIVER)
    mark = f"VSTEER_TEST_OF={folder}"
    name, _, value = mark.partition("=")
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, name: value},
        text=True,
    )

    def alive() -> set[int]:
        return {pid for pid in parents() if marked(pid, mark)}

    try:
        yield process, alive
    finally:
        process.kill()
        process.communicate()
        for pid in alive():
            os.kill(pid, signal.SIGKILL)


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


def marked(pid: int, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def described(pid: int) -> str:
    """A process for the message of a test: its command, its state, and where in the kernel it waits."""
    parts = [f"{pid}"]
    for name in ("cmdline", "stat", "wchan"):
        try:
            text = Path(f"/proc/{pid}/{name}").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError as error:
            text = str(error)
        parts.append(text[:300])
    return " | ".join(parts)


def ended(alive: Callable[[], set[int]], within: float) -> float:
    """How many seconds it took until nothing of the run was left."""
    began = time.monotonic()
    while left := alive():
        assert time.monotonic() - began < within, "\n".join(["left:", *map(described, sorted(left))])
        time.sleep(0.2)
    return time.monotonic() - began


@pytest.mark.engine
@pytest.mark.slow
def test_a_killed_driver_leaves_no_engine_behind(tmp_path: Path) -> None:
    with driver(tmp_path) as (process, alive):
        assert process.stdout is not None
        assert any(line == "started\n" for line in process.stdout)
        assert len(alive()) >= 2  # the driver and the engine's core
        process.kill()
        process.wait()
        ended(alive, 30)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", KILLED_AFTER)
def test_nor_does_one_that_is_killed_while_the_engine_starts(tmp_path: Path, seconds: float) -> None:
    """`seconds` after the engine's core has begun; vLLM itself would let it wait for five minutes."""
    with driver(tmp_path) as (process, alive):
        while not any(core(pid) for pid in alive()):
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(seconds)
        process.kill()
        process.wait()
        print(f"killed after {seconds} s: the last process ended {ended(alive, 90):.1f} s later")


def core(pid: int) -> bool:
    """Whether vLLM started it through Python's multiprocessing; another of these processes only cleans up."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
