"""Seam: the V1 model runner, which has no place for per-step inputs of a model's own.

Replaces `GPUModelRunner._prepare_inputs` (the CPU runner inherits it) in vLLM 0.26 to 0.33: after
the original, the step's token cells are filled from the same numbers that the original used.
Why: Model Runner V2 has ModelState for this; V1, which the CPU build picks, has nothing.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from vsteer.engine.worker.worker_table import worker_table

MARK = "replaced_by_vsteer"


def apply() -> None:
    original = GPUModelRunner._prepare_inputs
    if hasattr(original, MARK):
        return

    @functools.wraps(original)
    def with_token_cells(
        self: Any, scheduler_output: Any, num_scheduled_tokens: NDArray[np.int32], *args: Any, **kwargs: Any
    ) -> Any:
        prepared = original(self, scheduler_output, num_scheduled_tokens, *args, **kwargs)
        table = worker_table(self.get_model())
        if table is not None:
            batch = self.input_batch
            table.fill_v1_step(
                batch.req_ids[: batch.num_reqs],
                self.requests,
                batch.num_computed_tokens_cpu[: batch.num_reqs],
                num_scheduled_tokens,
                scheduler_output.scheduled_cached_reqs.resumed_req_ids,
            )
        return prepared

    setattr(with_token_cells, MARK, True)
    GPUModelRunner._prepare_inputs = with_token_cells
