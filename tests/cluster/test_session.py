"""Ray on this machine alone: what it opens, and that nothing of it is left, however a run ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.test_orphans import ended, marked, parents
from vsteer.cluster.session import RaySession
from vsteer.cluster.sweep import of_session
from vsteer.errors import VsteerError

ROOT = Path(__file__).parents[2]
PARENT = """
import os, signal, sys
from pathlib import Path
from tests.cluster.fake import Orders
from tests.cluster.test_cluster import STEERINGS, VECTORS, blocks
from vsteer.cluster.cluster import Cluster

# a shell lets what it starts in the background ignore SIGINT, and tests may run there
signal.signal(signal.SIGINT, signal.default_int_handler)
before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(5))
engine = Cluster(Orders(Path(sys.argv[1]), pace=0.01), least=2, most=2, requests=12)
try:
    assert signal.getsignal(signal.SIGTERM)(0, None) == 5
except SystemExit as ours:
    assert ours.code == 5
try:
    engine.load(VECTORS, STEERINGS)
    for n, _ in enumerate(engine.run_blocks(blocks(int(sys.argv[2])))):
        if n == 5:
            print("started", flush=True)
finally:
    engine.close()
    print("closed", flush=True)
"""


@contextmanager
def driver(folder: Path, blocks: int) -> Iterator[tuple[subprocess.Popen[str], Callable[[], set[int]], Path]]:
    """A process with two engines on two nodes' worth of cores, what finds all of its living processes, and
    the folder where whatever it writes for a time lies. Sockets want a short path."""
    temporary = Path(tempfile.mkdtemp(prefix="v", dir="/tmp"))
    (folder / "parent.py").write_text(PARENT)
    process = subprocess.Popen(
        [sys.executable, str(folder / "parent.py"), str(folder), str(blocks)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def alive() -> set[int]:
        # a process that writes a title for itself may write it over its environment
        return {pid for pid in parents() if marked(pid, f"TMPDIR={temporary}") or has_open(pid, temporary)}

    try:
        yield process, alive, temporary
    finally:
        process.kill()
        process.communicate()
        for pid in alive():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


def has_open(pid: int, folder: Path) -> bool:
    """Whether the process has a file of the folder open."""
    try:
        files = [handle.readlink() for handle in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return False
    return any(file.is_relative_to(folder) for file in files)


def listening(pids: set[int]) -> set[str]:
    """The addresses at which these processes listen, as /proc has them."""
    sockets = set()
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(str(handle.readlink()))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].split(":")[0])
    return found


SHARED = Path("/dev/shm")
# What vLLM's engines and joblib keep there, which other tests start meanwhile; there are none in this file.
OTHERS = ("psm_", "sem.loky-", "sem.mp-", "torch_", "vllm_")
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def shared_memory() -> set[str]:
    return {path.name for path in SHARED.iterdir() if not path.name.startswith(OTHERS)}


@pytest.mark.long
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two engines want two cores")
@pytest.mark.parametrize("how", ["end", "one SIGINT", "two SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_is_left_behind(tmp_path: Path, how: str) -> None:
    before = shared_memory()
    with driver(tmp_path, 100 if how == "end" else 1_000_000) as (process, alive, temporary):
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n", process.communicate()[1]
        assert len(alive()) > 5  # GCS, raylet, agents, two engines
        assert len(list(temporary.glob("vsteer-ray-*"))) == 1
        assert listening(alive()) <= LOOPBACK
        # a terminal sends it to the whole group of the parent
        if "SIGINT" in how:
            os.killpg(process.pid, signal.SIGINT)
        if how == "two SIGINT":
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGINT)
        if how == "SIGTERM":
            process.terminate()
        if how == "SIGKILL":
            process.kill()
        out, err = process.communicate(timeout=60)
        if how != "SIGKILL":
            assert "closed" in out or how == "two SIGINT"
        seconds = ended(alive, 40)
        print(f"{how}: the last process ended {seconds:.1f} s after the driver")
        assert not list(temporary.iterdir())
        # only the driver prints a traceback
        assert err.count("KeyboardInterrupt") <= 2
        assert not shared_memory() - before


@pytest.mark.parametrize(("file", "found"), [("raylet.out", True), ("python-core-driver.log", False)])
def test_what_ray_started_is_known_by_its_output(tmp_path: Path, file: str, found: bool) -> None:
    """Ray's agents write their titles over their arguments and environment, where the folder is named. What
    the driver forked has the driver's own log open, and is not Ray's."""
    logs = tmp_path / "session_1" / "logs"
    logs.mkdir(parents=True)
    with (logs / file).open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"],
            stdout=output,
            env={},
        )
    try:
        while "up" not in (logs / file).read_text():
            time.sleep(0.01)
        assert of_session(str(tmp_path)) == [process.pid] * found
    finally:
        process.kill()
        process.wait()


def test_no_cluster_at_an_address_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "2")
    with pytest.raises(VsteerError, match=r"there is no Ray cluster at 127\.0\.0\.1:9"):
        RaySession("127.0.0.1:9")
