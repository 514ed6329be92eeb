"""Run by its path as a process of its own: once its parent has ended, it ends what is left of the parent's
Ray and removes the folder in which that lived. It needs nothing but Python.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Ray's processes end by themselves when the one that started them does; what has not by then is killed.
PATIENCE_SECONDS, AT_MOST_SECONDS = 5.0, 30.0
RAYLET_OUTPUT = re.compile(r"/session_[^/]*/logs/raylet\.(out|err)( \(deleted\))?")


def of_session(folder: str) -> list[int]:
    """The processes that were started with the folder's path in their arguments or environment, and what the
    raylet started: its agents write their titles over both, but they inherit the file for its output."""
    found, real = [], os.path.realpath(folder)
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            named = any(folder.encode() in (process / part).read_bytes() for part in ("cmdline", "environ"))
            if named or any(
                RAYLET_OUTPUT.fullmatch(file.removeprefix(real)) for file in _open_files(process)
            ):
                found.append(int(process.name))
        except OSError:  # it ended
            continue
    return found


def _open_files(process: Path) -> Iterator[str]:
    for handle in (process / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield str(handle.readlink())


def sweep(folder: str) -> None:
    began = time.monotonic()
    while (left := of_session(folder)) and time.monotonic() < began + AT_MOST_SECONDS:
        if time.monotonic() > began + PATIENCE_SECONDS:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.buffer.read()  # until the parent closes the pipe, or is gone
    sweep(sys.argv[1])
