"""vectors/cosines.parquet: how far the unsteered stream of each prompt points along a condition's vector.

A condition on a prompt is decided by these numbers. They are measured once and kept, so that every start of a
run decides alike, and so that other thresholds can be looked at afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vsteer.store.files import disk_errors, write_sealed
from vsteer.store.schema import FLOAT, INT, STRING, Column, arrow_schema
from vsteer.store.sound import faults_of_tables, set_aside_with_warning

COSINES_FILE = "vectors/cosines.parquet"

COSINES = (
    Column("model", STRING, "the model, as the grid names it"),
    Column("model_commit", STRING, "the commit or content hash of the model's files"),
    Column("dtype", STRING, "the dtype of weights and activations"),
    Column("quantization", STRING, "how the weights are quantised; empty: they aren't"),
    Column("kv_cache_dtype", STRING, "the dtype of the KV cache"),
    Column("model_identity", STRING, "hash of all that the model's stream depends on"),
    Column("vector", STRING, "the condition's vector, by its name"),
    Column("vector_sha256", STRING, "the stored vector's hash"),
    Column("layer", INT, "the layer whose stream was compared with the vector's direction of that layer"),
    Column("token", STRING, "which of the prompt's tokens: mean, last"),
    Column("prompt_id", STRING, "the prompt, in prompts.parquet"),
    Column("tokens", INT, "how many tokens the prompt has without a forced answer prefix"),
    Column("cosine", FLOAT, "the cosine of the unsteered stream and the direction"),
    Column("engine", STRING, "what measured it"),
    Column("vllm_version", STRING, "vLLM's version; empty for another engine"),
    Column("run_session", INT, "which start of the run measured it"),
)
COSINES_SCHEMA = arrow_schema("cosines", COSINES)
# What there is one cosine of.
KEY = ("model_identity", "vector", "layer", "token", "prompt_id")


def read_cosines(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The records by `KEY`. A damaged file is set aside, and they are measured anew; the run is locked."""
    path = folder / COSINES_FILE
    for why in faults_of_tables(folder, {path: COSINES_SCHEMA}).values():
        if why:
            set_aside_with_warning(folder, path, why, "the cosines are measured anew")
    if not path.exists():
        return {}
    with disk_errors(f"reading {path}"):
        records = pq.read_table(path).to_pylist()
    return {key_of(record): record for record in records}


def write_cosines(folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
    table = pa.Table.from_pylist(list(records), COSINES_SCHEMA)
    (folder / COSINES_FILE).parent.mkdir(exist_ok=True)
    write_sealed(folder / COSINES_FILE, table)


def key_of(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in KEY)
