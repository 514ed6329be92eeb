"""A connection to Ray: to a cluster that somebody started, or to one of our own on this machine alone.

Our own listens on this machine only, has no dashboard, and lives in a folder that goes with it, whatever ends
this process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vsteer.cluster import sweep
from vsteer.errors import UsageError, VsteerError
from vsteer.validation import shortened

ADDRESS = "RAY_ADDRESS"
# Which processes are those of a session, for what sweeps up after it.
MARK = "VSTEER_RAY"
# Vectors and tables, once a node, and large answers. It is taken as it is needed.
STORE_BYTES, LEAST_STORE_BYTES = 2 * 2**30, 100 * 2**20
# A socket's path has at most 107 characters, and Ray appends some 60.
LONGEST_FOLDER = 40
CLOSE_SECONDS, CONNECT_SECONDS = 40.0, 10.0
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # the driver is not to say again and again that nodes are awaited
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's workers give way to every other process unless it is told not to, and here they are the engines
    "RAY_worker_niceness": "0",
}
# Without it Python looks for modules in the working directory, which may be a model's folder.
SAFE_PATH = "PYTHONSAFEPATH"


def imported_ray() -> Any:
    """Ray, imported with our settings; the user's own win."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError(
            "more than one engine needs Ray, which is not installed", "pip install 'vsteer[cluster]'"
        ) from None
    return ray


class RaySession:
    """Connected from its making until `close`. A connection that stands already is used, and left open."""

    def __init__(self, address: str | None = None, cpus: int | None = None) -> None:
        """`cpus` is how many cores there are, where Ray is started here; by default those usable."""
        self.ray = imported_ray()
        self._sweeper: subprocess.Popen[bytes] | None = None
        self._ours = not self.ray.is_initialized()
        address = address or os.environ.get(ADDRESS) or None
        self.local = self._ours and address in (None, "local")
        if not self._ours:
            return
        try:
            if self.local:
                self._start(cpus)
            else:
                self._join(str(address))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._ours and self.ray.is_initialized():
            with _signals_kept():
                self.ray.shutdown()
        if self._sweeper is not None:
            os.environ.pop(MARK, None)
            assert self._sweeper.stdin is not None
            self._sweeper.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._sweeper.wait(CLOSE_SECONDS)

    def _start(self, cpus: int | None) -> None:
        parent = tempfile.gettempdir()
        folder = tempfile.mkdtemp(
            prefix="vsteer-ray-", dir=parent if len(parent) < LONGEST_FOLDER else "/tmp"
        )
        self._sweeper = subprocess.Popen(
            # by its path, so that nothing of this environment is imported
            [sys.executable, "-I", "-S", sweep.__file__, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # out of reach of Ctrl-C
        )
        # Ray's processes inherit it, and theirs
        os.environ[MARK] = folder
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else STORE_BYTES
        with _reported("Ray can't be started on this machine"), _heard_here_alone():
            self._init(
                folder,
                address="local",
                num_cpus=cpus or cores,
                object_store_memory=max(LEAST_STORE_BYTES, min(STORE_BYTES, free * 3 // 4)),
                include_dashboard=False,
                _temp_dir=folder,
            )

    def _join(self, address: str) -> None:
        with (
            tempfile.TemporaryDirectory(prefix="vsteer-") as folder,
            _reported(f"there is no Ray cluster at {shortened(address)}"),
        ):
            host, _, port = address.rpartition(":")
            if host and port.isdigit():
                # where nobody listens Ray would end this process
                socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
            self._init(folder, address=address)

    def _init(self, folder: str, **options: Any) -> None:
        before = os.environ.get(SAFE_PATH)
        os.environ[SAFE_PATH] = "1"
        try:
            # Ray lets its workers import from the directory where it is started
            with _signals_kept(), contextlib.chdir(folder):
                self.ray.init(logging_level="warning", log_to_driver=True, **options)
        finally:
            os.environ.pop(SAFE_PATH)
            if before is not None:
                os.environ[SAFE_PATH] = before


@contextlib.contextmanager
def _heard_here_alone() -> Iterator[None]:
    """Ray then listens at 127.0.0.1, as it does on systems where it makes no clusters; elsewhere it puts an
    address that others can reach in the place of this one, though it is given."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own in the place of whoever catches SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread, where Ray sets none
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Ray raises any kind
        raise VsteerError(
            f"{what}: {shortened(str(error), 200)}",
            hint="`ray status` shows a cluster; its address is that of `ray start --head`, as host:port; "
            "where it wants a token, set RAY_AUTH_MODE=token; docs/cluster.md has the ports "
            "and what to look at",
        ) from error
