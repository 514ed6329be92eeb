"""`python -m tests.serve.throughput [MODEL] [DTYPE]`: how fast a server answers beside stock `vllm serve`.

vLLM's own benchmark client asks three servers' names in turn: stock vLLM, ours unsteered, and ours under a
steering of its own for each client. Both servers run all the while, and the one that is not asked is idle.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import numpy as np

from vsteer.bench.figures import Figure, as_table, median_ratio, rates_in_turn
from vsteer.models import resolve
from vsteer.models.hugging_face import load_config
from vsteer.vectors.files import save
from vsteer.vectors.vector import SteeringVector

ROUNDS, PROMPTS, PROMPT_TOKENS, TOKENS = 5, 48, 64, 64
STOCK, OURS = 8471, 8472
SECONDS = 400.0
CLIENT = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


@contextmanager
def server(port: int, *command: str, **variables: str) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=log, stderr=log, env={**os.environ, **variables}
        )
        try:
            began = time.monotonic()
            while not answers(port):
                if process.poll() is not None or time.monotonic() > began + SECONDS:
                    log.seek(0)
                    raise RuntimeError(log.read().decode(errors="replace")[-3000:])
                time.sleep(1)
            yield
        finally:
            process.terminate()
            process.wait(60)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=30).status_code == 200
    except httpx.HTTPError:
        return False


def rate(folder: Path, tokenizer: str, port: int, name: str, seed: int) -> float:
    """Tokens a second, as vLLM's client counts them. A seed of its own keeps prompts out of the cache."""
    options = {
        "backend": "openai",
        "base-url": f"http://127.0.0.1:{port}",
        "endpoint": "/v1/completions",
        "model": name,
        "tokenizer": tokenizer,
        "dataset-name": "random",
        "random-input-len": PROMPT_TOKENS,
        "random-output-len": TOKENS,
        "num-prompts": PROMPTS,
        "seed": seed,
        "result-dir": folder,
        "result-filename": "result.json",
    }
    flags = ["--temperature", "0", "--ignore-eos", "--save-result", "--disable-tqdm"]
    arguments = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    subprocess.run([sys.executable, "-c", CLIENT, *arguments, *flags], check=True, stdout=subprocess.DEVNULL)
    found = json.loads((folder / "result.json").read_text())
    assert found["completed"] == PROMPTS, found
    return float(found["output_throughput"])


def main(model: str = "smollm2-135m-instruct", dtype: str = "bfloat16") -> None:
    folder = str(resolve(model).model)
    config = load_config(folder).get_text_config()
    with tempfile.TemporaryDirectory() as place:
        vector = Path(place, "v.safetensors")
        rng = np.random.default_rng(0)
        directions = rng.standard_normal((config.num_hidden_layers, config.hidden_size)).astype(np.float32)
        save(SteeringVector("v", dict(enumerate(directions))), vector)
        stock = ["-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--served-model-name", "base"]
        same = ["--dtype", dtype, "--max-model-len", "2048"]
        kv = [
            "--disable-log-stats",
            "--disable-uvicorn-access-log",
            "--max-num-seqs",
            "256",
            "--block-size",
            "32",
            "--kv-cache-memory-bytes",
            str(2**30),
        ]
        # what ours sets by itself: left to itself, vLLM keeps one of two cores free
        variables = {
            "VLLM_PLUGINS": "",
            "VLLM_USE_AOT_COMPILE": "0",
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        }
        ours = ["-m", "vsteer", "serve", model, "--vector", f"v={vector}", "--port", str(OURS)]
        with (
            server(STOCK, *stock, *same, *kv, "--port", str(STOCK), **variables),
            server(OURS, *ours, *same),
        ):
            steering = f"base+v@{config.num_hidden_layers // 2}*0.1"
            asked = ((STOCK, "base"), (OURS, "base"), (OURS, steering))
            plain, unsteered, steered = rates_in_turn(
                ROUNDS, *(partial(rate, Path(place), folder, port, name) for port, name in asked)
            )
    figures = [
        Figure("stock vLLM, tokens a second", statistics.median(plain)),
        ratio("unsteered over stock", unsteered, plain, 0.97),
        ratio("steered over stock", steered, plain, 0.95),
    ]
    print(f"{model}, {dtype}, {PROMPTS} at once, {PROMPT_TOKENS} + {TOKENS} tokens, {ROUNDS} rounds")
    print(as_table(figures))


def ratio(name: str, ours: list[float], stock: list[float], least: float) -> Figure:
    found = [one / other for one, other in zip(ours, stock, strict=True)]
    return Figure(name, median_ratio(ours, stock), least, note=f"{min(found):.2f} to {max(found):.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
