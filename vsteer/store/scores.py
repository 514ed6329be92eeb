"""scores/: what scorers say of stored rows, beside the rows and never in them.

`SCORER-HASH.parquet` holds one line for each number of each row. The hash is of everything that changes what
the scorer says, so scores of two versions of it, or of two judges, never mix; what it was made of stands in
the file's metadata under `scorer`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from vsteer.store.schema import FLOAT, STRING, TIME, Column, arrow_schema
from vsteer.store.sound import faults_of_tables, set_aside_damaged

SCORES_FOLDER = "scores"

SCORES = (
    Column("row_id", STRING, "the row, in rows/*.parquet"),
    Column("row_finished_at", TIME, "that row's finished_at: a row that is computed again is scored again"),
    Column(
        "scorer", STRING, "the scorer: refusal, repetition, length, characters, perplexity, judge, lm_eval"
    ),
    Column("scorer_hash", STRING, "hash of everything that changes what the scorer says: 12 hex digits"),
    Column(
        "name",
        STRING,
        "which of the scorer's numbers; a judge's is its rubric's name, lm_eval's its metric's",
    ),
    Column("value", FLOAT, "the number it gives", null="none: the text is too short, the judge unreadable"),
    Column(
        "note",
        STRING,
        "in words: a judge's reason, a phrase that was found, why value is null",
        null="no word",
    ),
)


SCORES_SCHEMA = arrow_schema(SCORES_FOLDER, SCORES)


def schema_of(scorer_hash: str, about: Mapping[str, Any]) -> pa.Schema:
    """A score file's schema; `about` is what the hash is of."""
    made = json.dumps({"hash": scorer_hash, **about}, ensure_ascii=False, sort_keys=True)
    return SCORES_SCHEMA.with_metadata({**(SCORES_SCHEMA.metadata or {}), "scorer": made})


def sound_scores(folder: Path) -> list[Path]:
    """The score files that can be read; a warning names each of the others, which are set aside."""
    scores = folder / SCORES_FOLDER
    files = faults_of_tables(folder, dict.fromkeys(sorted(scores.glob("*.parquet")), SCORES_SCHEMA))
    set_aside_damaged(folder, files, scores, "`vsteer score` gives texts their scores anew")
    return [file for file, why in files.items() if not why]


def scores_path(folder: Path, scorer: str, scorer_hash: str) -> Path:
    return folder / SCORES_FOLDER / f"{scorer}-{scorer_hash}.parquet"
