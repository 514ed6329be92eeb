"""One run at a time on a folder, by an exclusive flock: it ends with its process, however that ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from vsteer.errors import StoreError
from vsteer.files import parse_json, read_regular
from vsteer.store.files import disk_errors, refuse_link

LOCK = "run.lock"
# A reader that checks whether a run is live holds the lock for microseconds; a run waits longer than that.
PATIENCE = 1.0

# A forked child (an engine) would hold the lock after this process's death, so it closes these.
_held: set[int] = set()


def _close_in_child() -> None:
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


@dataclass(frozen=True)
class Holder:
    """The process that has a run folder."""

    pid: int
    host: str
    since: str


class FolderLock:
    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        with disk_errors(f"locking {path}"):
            refuse_link(path)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                if not _locked(self._handle):
                    raise _in_use(folder, _read_holder(path))
                if not _is_still(path, self._handle):
                    # What is locked went away with its folder, and others may have the one that is there now.
                    raise StoreError(
                        f"{folder} was put aside or replaced while its lock was awaited",
                        hint="give the same command again",
                    )
                me = Holder(
                    os.getpid(), socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds")
                )
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, json.dumps(asdict(me)).encode(), 0)
            except BaseException:
                os.close(self._handle)
                raise
        _held.add(self._handle)

    def release(self) -> None:
        if self._handle in _held:
            _held.remove(self._handle)
            os.close(self._handle)


def _locked(handle: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def _is_still(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def holder(folder: Path) -> Holder | None:
    """Who runs on this folder now, or None. No run is ever refused because somebody looked."""
    path = folder / LOCK
    with disk_errors(f"reading {path}"):
        try:
            refuse_link(path)
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read_holder(path)
        finally:
            os.close(handle)
    return None


def _read_holder(path: Path) -> Holder:
    try:
        return Holder(**parse_json(read_regular(path, 2**16)))
    except (OSError, ValueError, TypeError):  # it is being written
        return Holder(0, "unknown", "")


def _in_use(folder: Path, by: Holder) -> StoreError:
    return StoreError(
        f"{folder} is in use by process {by.pid} on {by.host}, since {by.since or 'just now'}",
        hint="wait for it, stop it, or give this run another name; `vsteer status` shows how far it is",
    )
