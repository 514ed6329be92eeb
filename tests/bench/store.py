"""What the store alone takes: rows a second through it, memory, compaction, and reading which rows stand."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from vsteer.bench.figures import Figure
from vsteer.bench.memory import most_held
from vsteer.store.store import open_store

TOKENS = 100
CHUNK = 1000
KINDS = ("choice", "open_ended")
WORDS = (
    "the",
    "model",
    "would",
    "rather",
    "not",
    "say",
    "what",
    "it",
    "thinks",
    "because",
    "nobody",
    "asked",
)


def bench_store(rows: int = 200_000) -> list[Figure]:
    """Append `rows` rows of each kind, then read which stand and compact them."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="vsteer-bench-") as folder:
        # The smaller rows come first, and compaction last: what is measured is a peak, which only grows.
        for kind in KINDS:
            figures += _appended(Path(folder) / kind, kind, rows)
        for kind in KINDS:
            figures += _compacted(Path(folder) / kind, kind, rows)
    return figures


def _appended(folder: Path, kind: str, rows: int) -> list[Figure]:
    made = made_rows(kind, rows)
    with open_store(folder) as store:
        wall, cpu, early = 0.0, 0.0, 0.0
        for number in range(0, rows, CHUNK):
            chunk = list(islice(made, CHUNK))
            began = time.perf_counter(), time.process_time()
            for row in chunk:
                store.append(row)
            if number + CHUNK >= rows:
                store.flush()
            wall += time.perf_counter() - began[0]
            cpu += time.process_time() - began[1]
            if number < rows / 20:
                early = most_held() / 2**20
        growth = most_held() / 2**20 - early
    size = sum(file.stat().st_size for file in (folder / "rows").iterdir())
    note = f"{rows / cpu:.0f} a second of CPU time; {size / rows:.0f} bytes a row"
    left = f"grew by {growth:.0f} MiB after the first 5%"
    return [
        Figure(f"{kind} rows a second", rows / wall, target=20_000, note=note),
        Figure(f"{kind} memory left of 200 MiB", 200 - growth, target=0, note=left),
    ]


def _compacted(folder: Path, kind: str, rows: int) -> list[Figure]:
    with open_store(folder) as store:
        started = time.perf_counter()
        assert len(store.done().good) == rows
        read = time.perf_counter() - started
        started = time.perf_counter()
        store.compact()
        compacted = time.perf_counter() - started
    return [
        Figure(f"{kind} done() rows a second", rows / read),
        Figure(f"{kind} compact() rows a second", rows / compacted),
    ]


def made_rows(kind: str, count: int) -> Iterator[dict[str, Any]]:
    """Rows of realistic size: 60 configurations a prompt, texts of 100 tokens or two choices."""
    random = Random(0)
    now = datetime.now(UTC)
    answers: dict[str, dict[str, Any]] = {
        "open_ended": {"choices": None, "choice_logprobs": None, "choice_tokens": None, "matching": None},
        "choice": {"choices": ["(A)", "(B)"], "choice_tokens": [3, 3], "matching": 1},
    }
    for number in range(count):
        prompt, layer = divmod(number, 60)
        row: dict[str, Any] = {
            "row_id": f"{random.getrandbits(128):032x}",
            "config_id": f"{layer:032x}",
            "item_id": f"{prompt:032x}",
            "prompt_id": f"{prompt:032x}",
            "evaluation": "refusal",
            "kind": kind,
            "sample": 0,
            "letter_order": "original",
            "model": "meta-llama/Llama-2-7b-chat-hf",
            "vector": "refusal",
            "vector_sha256": "5f" * 32,
            "norm": "residual:0.1",
            "control": "",
            "control_index": None,
            "layers": [layer],
            "layer": layer,
            "depth": (layer + 1) / 60,
            "operation": "add",
            "multiplier": 1.5,
            "positions": "after_prompt",
            "system": "",
            "status": "ok",
            "error": None,
            "text": None,
            "token_ids": None,
            "finish_reason": "length",
            "total_mass": None,
            "p_match": None,
            "logit_diff": None,
            "prompt_tokens": 129,
            "completion_tokens": 1,
            "cached_tokens": 96,
            "steered_tokens": 1,
            "condition_met": None,
            "started_at": now,
            "finished_at": now,
            "attempt": 1,
            "engine": "vllm",
            "vllm_version": "0.32.0",
            "vector_file_sha256": "5f" * 32,
            "run_session": 1,
            **answers[kind],
        }
        if kind == "open_ended":
            row["text"] = " ".join(random.choices(WORDS, k=TOKENS))
            row["token_ids"] = random.choices(range(32_000), k=TOKENS)
            row["completion_tokens"] = TOKENS
        else:
            a, b = random.uniform(-9, 0), random.uniform(-9, 0)
            row |= {"choice_logprobs": [a, b], "logit_diff": b - a}
            row |= {"total_mass": random.random(), "p_match": random.random()}
        yield row
