"""Perplexities on Model Runner V2, on a CPU: a program that test_coherence.py runs in its own process.

It prints, as one line of JSON, each text as the engine wrote it, with its prompt and its perplexity.
"""

from __future__ import annotations

import json
import sys

# first: it puts the stand-in of a Triton backend where vllm will look for it
from tests.engine.v2_runner_main import BATCHED_TOKENS


def main(model: str, lengths: list[tuple[int, int]]) -> None:
    import numpy as np
    import torch

    from vsteer.engine.driver import VllmEngine
    from vsteer.engine.options import EngineOptions
    from vsteer.protocol import Prompt, Request
    from vsteer.scoring.perplexity import coherence_request, read_coherence

    torch.set_num_threads(1)
    engine = VllmEngine(
        model,
        dtype="float32",
        options=EngineOptions(
            max_model_len=128,
            max_num_seqs=16,
            max_num_batched_tokens=BATCHED_TOKENS,
            kv_cache_gib=0.1,
            enforce_eager=True,
        ),
    )
    try:
        rng = np.random.default_rng(0)
        asked = [
            Request(
                str(n),
                Prompt.plain(int(token) for token in rng.integers(3, 259, length)),
                max_tokens=tokens,
                ignore_eos=True,
            )
            for n, (length, tokens) in enumerate(lengths)
        ]
        texts = {result.id: result.token_ids for result in engine.run(asked)}
        requests = [coherence_request(one.id, one.prompt.token_ids, texts[one.id]) for one in asked]
        found = {result.id: result for result in engine.run(requests)}
        answer = [
            [
                one.prompt.token_ids,
                texts[one.id],
                read_coherence(texts[one.id], found[one.id])["perplexity"][0],
            ]
            for one in asked
        ]
        print(json.dumps({"v2_runner": bool(engine._llm.vllm_config.use_v2_model_runner), "written": answer}))
    finally:
        engine.close()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
