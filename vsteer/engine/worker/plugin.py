"""The `vllm.general_plugins` entry point: loaded by vLLM in the driver, the engine core and every worker.

It registers our model classes and the seam in the engine core. An engine without a vsteer section in its
configuration behaves as stock vLLM does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

# The driver sets it while it starts an engine, so that processes know whose they are.
OURS = "VSTEER_ENGINE"


def register() -> None:
    from vllm import ModelRegistry

    from vsteer.families import FAMILIES
    from vsteer.patches import block_hash

    for family in FAMILIES:
        ModelRegistry.register_model(family.architecture, family.steered)
    block_hash.apply()
    if os.environ.get(OURS) and multiprocessing.parent_process() is not None:
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches every process of a terminal: the driver alone decides what it means
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """A killed driver must not leave an engine behind that holds the device's memory."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
