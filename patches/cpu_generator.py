"""Seam: seeded sampling on a CPU while a prompt is prefilled in chunks.

Replaces `GPUModelRunner.sample_tokens` (the CPU runner inherits it) in the CPU build of vLLM 0.32: while it
runs, requests whose prompt is not done yet have no generator of their own.
Why: vLLM samples for them too, throws the sample away and sets their generator back by `set_offset`, which
only CUDA's generators have: on a CPU the engine dies of "CPU Generator does not use offset".
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

MARK = "replaced_by_vsteer"


def apply() -> None:
    original = GPUModelRunner.sample_tokens
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def without_unfinished_prompts(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        unfinished = np.flatnonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])
        aside = {index: generators.pop(index) for index in unfinished.tolist() if index in generators}
        try:
            return original(self, *args, **kwargs)
        finally:
            generators.update(aside)

    setattr(without_unfinished_prompts, MARK, True)
    GPUModelRunner.sample_tokens = without_unfinished_prompts
