"""The `vllm.general_plugins` entry point: loaded by vLLM in the driver, the engine core and every worker.

It registers our model classes and the seam in the engine core. An engine without a vsteer section in its
configuration behaves as stock vLLM does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

from vsteer.engine.worker.parent import end_with

# The driver sets it while it starts an engine, so that processes know whose they are.
OURS = "VSTEER_ENGINE"


def register() -> None:
    from vllm import ModelRegistry

    from vsteer.families import FAMILIES
    from vsteer.patches import block_hash

    for family in FAMILIES:
        ModelRegistry.register_model(family.architecture, family.steered)
    block_hash.apply()
    parent = multiprocessing.parent_process()
    if os.environ.get(OURS) and parent is not None:
        if threading.current_thread() is threading.main_thread():
            # Ctrl-C reaches every process of a terminal: the driver alone decides what it means
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if parent.pid is not None:
            end_with(parent.pid)
