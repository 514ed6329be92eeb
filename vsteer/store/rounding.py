"""rounding.parquet: some effects of a run in 16 bits beside the same ones in float32. What rounding does to a
score is the difference of the two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from vsteer.store.files import write_sealed
from vsteer.store.schema import FLOAT, STRING, Column, arrow_schema
from vsteer.store.sound import faults_of_tables

ROUNDING_FILE = "rounding.parquet"

ROUNDING = (
    Column("model", STRING, "the model, as the grid names it"),
    Column("dtype", STRING, "what the run computes in"),
    Column("evaluation", STRING, "the evaluation's name"),
    Column("config_id", STRING, "the configuration, in configs.parquet"),
    Column("prompt_id", STRING, "the prompt, in prompts.parquet"),
    Column("effect", FLOAT, "its effect on the logit difference, as the rows have it"),
    Column("effect_float32", FLOAT, "the same by Hugging Face in float32, with the same vector"),
)
ROUNDING_SCHEMA = arrow_schema(ROUNDING_FILE, ROUNDING)


def write_rounding(folder: Path, records: Sequence[dict[str, Any]]) -> None:
    """Put records in place of what the file has of their models."""
    models = {record["model"] for record in records}
    kept = [record for record in read_rounding(folder) if record["model"] not in models]
    table = pa.Table.from_pylist([*kept, *records], ROUNDING_SCHEMA)
    write_sealed(folder / ROUNDING_FILE, table)


def read_rounding(folder: Path) -> list[dict[str, Any]]:
    """What is there and sound. What is damaged can be measured again, and is taken for nothing."""
    import pyarrow.parquet as pq

    path = folder / ROUNDING_FILE
    if list(faults_of_tables(folder, {path: ROUNDING_SCHEMA}).values()) != [None]:
        return []
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found
