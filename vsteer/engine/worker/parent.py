"""A process of an engine ends with the one that started it, whenever that is killed.

Otherwise it would hold the device's memory. A child can't find out by itself which process started it: by the
time that it looks, that one may be gone, and another is its parent.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any


class EndsWithParent:
    """Whoever gets this by way of a pickle ends with the process that pickled it.

    The driver puts it into vLLM's configuration, which each new process unpickles first of all. The plugin
    comes too late: vLLM loads it after a handshake, and waits minutes for that.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unpickled, (os.getpid(),))


def _unpickled(parent: int) -> EndsWithParent:
    if parent != os.getpid():  # a copy within one process travels nowhere
        end_with(parent)
    return EndsWithParent()


def end_with(parent: int) -> None:
    """Kill this process as soon as `parent` isn't its parent, which may be so already."""
    threading.Thread(target=_end_with, args=(parent,), name="vsteer-parent", daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
