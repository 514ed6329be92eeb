"""The `vllm.general_plugins` entry point: loaded by vLLM in the driver, the engine core and every worker.

It registers our model classes and the seam in the engine core. An engine without a vsteer section in its
configuration behaves as stock vLLM does.
"""

from __future__ import annotations


def register() -> None:
    from vllm import ModelRegistry

    from vsteer.engine.support import FAMILIES
    from vsteer.patches import block_hash

    for architecture, qualified_name in FAMILIES.items():
        ModelRegistry.register_model(architecture, qualified_name)
    block_hash.apply()
