"""Run by its path as a process of its own: once its parent has ended, it ends what is left of the parent's
Ray and removes the folder in which that lived. It needs nothing but Python.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

# Ray's processes end by themselves when the one that started them does; what has not by then is killed.
PATIENCE_SECONDS, AT_MOST_SECONDS = 5.0, 30.0


def of_session(folder: str) -> list[int]:
    """The processes that were started with the folder's path in their arguments or environment, or that write
    to a file in it. Ray's agents put their titles over both of the former."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            if any(folder.encode() in (process / part).read_bytes() for part in ("cmdline", "environ")) or any(
                os.readlink(process / "fd" / output).startswith(f"{folder}/") for output in ("1", "2")
            ):
                found.append(int(process.name))
        except OSError:
            continue
    return found


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
