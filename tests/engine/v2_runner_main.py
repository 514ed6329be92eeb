"""Parity on vLLM's Model Runner V2, on a CPU: a program that test_v2_runner.py runs in its own process.

Model Runner V2 is written in Triton kernels, which a CPU runs under Triton's interpreter only. vLLM takes
Triton for usable where it has an active `cpu` backend, so one is put there before vllm is imported. Every
process that vLLM spawns runs this file's top level first, and so has it too.
"""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

from triton.backends import backends

# vLLM asks for nothing but whether the driver is active; no kernel is compiled.
backends["cpu"] = SimpleNamespace(compiler=None, driver=SimpleNamespace(is_active=lambda: True))


def main(model: str, rows: int, tensor_parallel: int, pipeline_parallel: int, kv_blocks: int) -> None:
    from vsteer.engine.driver import EngineOptions, VllmEngine
    from vsteer.engine.parity import compare, make_requests, make_vectors
    from vsteer.engine.reference import ReferenceEngine
    from vsteer.engine.table import Capacity

    began = time.monotonic()
    engine = VllmEngine(
        model,
        options=EngineOptions(
            dtype="float32",
            max_model_len=512,
            max_num_seqs=64,
            # prompts have up to 80 tokens, so they are prefilled in chunks
            max_num_batched_tokens=64,
            kv_cache_gib=0.1,
            tensor_parallel_size=tensor_parallel,
            pipeline_parallel_size=pipeline_parallel,
            enforce_eager=True,
            vllm={"num_gpu_blocks_override": kv_blocks},
        ),
        capacity=Capacity(terms=3),
    )
    started = time.monotonic()
    try:
        found = compare(
            engine,
            ReferenceEngine(model),
            make_requests(rows, engine.layers, engine.vocab_size),
            make_vectors(engine.layers, engine.hidden_size, strength=5.0),
        )
        print(
            json.dumps(
                {
                    "v2_runner": engine.v2_runner,
                    "recomputed": engine.recomputed_tokens(),
                    "rows": found.rows,
                    "steered_rows": found.steered_rows,
                    "largest_difference": found.largest_difference,
                    "least_slip": found.least_slip,
                    "failures": found.failures,
                    "start_seconds": started - began,
                    "seconds": time.monotonic() - started,
                }
            )
        )
    finally:
        engine.close()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
