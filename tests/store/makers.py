"""Records that the store takes, made by hand: each number gives the same one every time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from vsteer import identity
from vsteer.store.planned import Planned, PlannedPart
from vsteer.store.store import Store

Record = dict[str, Any]
START = datetime(2026, 11, 21, 8, 30, 0, 123456, tzinfo=UTC)


def row_id(number: int) -> str:
    return identity.row_id(f"config-{number % 14}", f"item-{number // 14}", "original", 0)


def planned(numbers: Iterable[int]) -> Planned:
    """A plan of these rows."""
    parts: dict[int, list[int]] = {}
    for number in numbers:
        parts.setdefault(number // 14, []).append(number % 14)
    return Planned(
        PlannedPart("", [f"config-{n}" for n in configs], [(f"item-{item}", "original")])
        for item, configs in parts.items()
    )


def row(number: int = 0, **changes: Any) -> Record:
    """A choice row with status ok, steered at layer `number % 7`; a baseline every 7."""
    layer = None if number % 7 == 6 else number % 7
    steered = layer is not None
    return {
        "row_id": row_id(number),
        "config_id": f"config-{number % 14}",
        "item_id": f"item-{number // 14}",
        "prompt_id": f"prompt-{number // 14}",
        "evaluation": "sentiment",
        "kind": "choice",
        "sample": 0,
        "letter_order": "original",
        "model": "tiny-llama",
        "vector": "sentiment" if steered else "",
        "vector_sha256": "ab" * 32 if steered else "",
        "norm": "unit" if steered else "",
        "control": "",
        "control_index": None,
        "layers": [layer] if steered else [],
        "layer": layer,
        "depth": (layer + 1) / 8 if layer is not None else None,
        "operation": "add" if steered else "",
        "multiplier": (-0.1 if number % 14 < 7 else 0.1) if steered else 0.0,
        "positions": "all" if steered else "",
        "system": "",
        "status": "ok",
        "error": None,
        "text": " Yes",
        "token_ids": [11],
        "finish_reason": "length",
        "choices": ["Yes", "No"],
        "choice_logprobs": [-0.5, -1.5],
        "choice_tokens": [1, 1],
        "matching": 0,
        "total_mass": 0.8296608198610632,
        "p_match": 0.7310585786300049,
        "logit_diff": 1.0,
        "prompt_tokens": 20,
        "completion_tokens": 1,
        "cached_tokens": 16,
        "steered_tokens": 20 if steered else 0,
        "condition_met": None,
        "started_at": START + timedelta(seconds=number),
        "finished_at": START + timedelta(seconds=number + 1),
        "attempt": 1,
        "engine": "reference",
        "vllm_version": "",
        "vector_file_sha256": "cd" * 32 if steered else "",
        "run_session": 1,
        **changes,
    }


NOTHING_ASKED = dict.fromkeys(
    ("choices", "choice_logprobs", "choice_tokens", "matching", "total_mass", "p_match", "logit_diff")
)


def text_row(number: int = 0, **changes: Any) -> Record:
    text = {"kind": "open_ended", "text": "Où? 東京 🙂", "token_ids": [5, 6, 31999], "completion_tokens": 3}
    return row(number, **{**NOTHING_ASKED, **text, **changes})


def error_row(number: int = 0, **changes: Any) -> Record:
    nothing = dict.fromkeys(
        ("text", "token_ids", "finish_reason", "completion_tokens", "cached_tokens", "steered_tokens")
    )
    failed = {"status": "error", "error": "too long: 3000 prompt tokens exceed max_model_len 2048"}
    return row(number, **{**NOTHING_ASKED, **nothing, **failed, **changes})


def config(number: int = 0, **changes: Any) -> Record:
    axes = row(number)
    names = (
        "config_id evaluation kind model vector vector_sha256 norm control control_index layers layer depth"
        " operation multiplier positions system"
    )
    return {
        **{name: axes[name] for name in names.split()},
        "model_commit": "0123abcd",
        "dtype": "float32",
        "quantization": "",
        "kv_cache_dtype": "auto",
        "template": "plain",
        "system_prompt": "",
        "forced_prefix": "",
        "vector_recipe": '{"method": "mean_diff"}',
        **dict.fromkeys(("when_vector", "when_layer", "when_token", "when_side", "when_threshold")),
        "max_tokens": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "rows": 3,
        **changes,
    }


def prompt(number: int = 0, **changes: Any) -> Record:
    return {
        "prompt_id": f"prompt-{number}",
        "item_id": f"item-{number}",
        "evaluation": "sentiment",
        "kind": "choice",
        "data": "sentiment",
        "data_sha256": "ef" * 32,
        "category": "",
        "letter_order": "original",
        "swapped_from": "",
        "system": "",
        "question": "Was it good?",
        "prompt": "Was it good? Answer:",
        "token_ids": [1, 2, 3],
        "prompt_tokens": 3,
        "choices": ["Yes", "No"],
        "matching": 0,
        **changes,
    }


def write_plan(store: Store, rows: int) -> None:
    """The plan of row(0) to row(rows - 1)."""
    prompts = range(-(-rows // 14))
    store.write_plan({"name": "test"}, map(config, range(14)), map(prompt, prompts), rows)


def stored(folder: Path, what: str = "row_id, status, attempt", where: str = "true") -> list[Any]:
    """What plain SQL on the one glob says, with nothing of the store's in between."""
    with duckdb.connect() as database:
        glob = f"{folder}/rows/*.parquet"
        rows: list[Any] = database.execute(
            f"select {what} from '{glob}' where {where} order by all"
        ).fetchall()
        return rows


def numbers(ids: Iterable[str], among: int) -> list[int]:
    """Which of row(0) to row(among - 1) have these ids."""
    known = {row_id(number): number for number in range(among)}
    return sorted(known[one] for one in ids)
