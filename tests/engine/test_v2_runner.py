"""The parity suite on Model Runner V2, which a GPU runs: here on a CPU, under Triton's interpreter."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vsteer import models
from vsteer.engine.proof.parity import SLIP_FACTOR, TOLERANCE

# Of 32 tokens each: three or four running requests fill them, so that growing ones preempt each other.
KV_BLOCKS = 10
ENVIRONMENT = {
    "TRITON_INTERPRET": "1",
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    # vLLM compiles a helper of tensor parallelism even in eager mode, and Inductor would ask the program's
    # stand-in for a Triton backend for more than it is
    "TORCHDYNAMO_DISABLE": "1",
}


def run(name: str, *arguments: object) -> dict[str, Any]:
    """What a program of this folder prints.

    It has its own process, as Triton and vLLM read the environment at import.
    """
    with subprocess.Popen(
        [sys.executable, "-m", f"tests.engine.{name}", *map(str, arguments)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            out, err = program.communicate(timeout=500)
        finally:
            # vLLM's own processes too, should it have died without them
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
    assert program.returncode == 0, err[-10_000:]
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs Model Runner V2 in test_parity.py")
@pytest.mark.parametrize(
    ("tensor_parallel", "pipeline_parallel", "rows"),
    [
        # what `make test` has of it
        pytest.param(1, 1, 40, marks=pytest.mark.one_engine),
        *(pytest.param(*parallel, 210, marks=pytest.mark.engine) for parallel in ((1, 1), (2, 1), (1, 2))),
    ],
    ids=["tp1-sample", "tp1", "tp2", "pp2"],
)
def test_parity_on_model_runner_v2(tensor_parallel: int, pipeline_parallel: int, rows: int) -> None:
    model = models.resolve("tiny-llama").model
    most_tokens = 16
    found = run("v2_runner_main", model, rows, most_tokens, KV_BLOCKS, tensor_parallel, pipeline_parallel)

    print({name: value for name, value in found.items() if name != "failures"})
    assert found["v2_runner"] is True
    assert (found["tensor_parallel"], found["pipeline_parallel"]) == (tensor_parallel, pipeline_parallel)
    assert not found["failures"]
    assert found["rows"] == rows
    assert found["steered_rows"] >= 0.85 * rows
    assert found["largest_difference"] <= TOLERANCE
    assert found["least_slip"] >= SLIP_FACTOR * TOLERANCE
    assert found["chunked"] > rows // 20
    assert found["recomputed"] > 0, "no request was preempted"
    assert found["cached_tokens"] > 0
    assert found["captured"] == 2 * sum(index % 7 < 2 for index in range(rows))
    assert found["largest_capture_difference"] <= 1e-5
