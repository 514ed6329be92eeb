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

from triton.backends import backends  # type: ignore[import-untyped]

# vLLM asks for nothing but whether the driver is active; no kernel is compiled.
backends["cpu"] = SimpleNamespace(compiler=None, driver=SimpleNamespace(is_active=lambda: True))

# Prompts longer than this are prefilled in chunks.
BATCHED_TOKENS = 64


def main(
    model: str, rows: int, most_tokens: int, kv_blocks: int, tensor_parallel: int, pipeline_parallel: int
) -> None:
    """Print what the comparison found, and what the engine says of itself, as one line of JSON."""
    import torch

    from vsteer.engine.driver import VllmEngine
    from vsteer.engine.options import EngineOptions
    from vsteer.engine.proof.parity import compare, make_requests, make_vectors
    from vsteer.engine.proof.reference import ReferenceEngine
    from vsteer.engine.table import Capacity

    began = time.monotonic()
    # so small a model is no faster on more threads, and far slower where the engine's workers spin on them
    torch.set_num_threads(1)
    reference = ReferenceEngine(model)
    engine = VllmEngine(
        model,
        dtype="float32",
        options=EngineOptions(
            max_model_len=128,
            max_num_seqs=64,
            max_num_batched_tokens=BATCHED_TOKENS,
            kv_cache_gib=0.1,
            tensor_parallel_size=tensor_parallel,
            pipeline_parallel_size=pipeline_parallel,
            enforce_eager=True,
            vllm={"num_gpu_blocks_override": kv_blocks},
        ),
        capacity=Capacity(terms=3, captures=16),
    )
    started = time.monotonic()
    try:
        requests = make_requests(
            rows, engine.info.layers, engine.info.vocab_size, max_tokens=(4, most_tokens), captures=True
        )
        found = compare(engine, reference, requests, make_vectors(reference))
        parallel = engine._llm.vllm_config.parallel_config
        answer = {
            "v2_runner": bool(engine._llm.vllm_config.use_v2_model_runner),
            "tensor_parallel": parallel.tensor_parallel_size,
            "pipeline_parallel": parallel.pipeline_parallel_size,
            "chunked": sum(len(request.prompt.token_ids) > BATCHED_TOKENS for request in requests),
            "recomputed": engine.recomputed_tokens(),
            **vars(found),
            "start_seconds": started - began,
            "seconds": time.monotonic() - started,
        }
    finally:
        engine.close()
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
