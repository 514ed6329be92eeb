"""scores/: what scorers say of stored rows, beside the rows and never in them.

`SCORER-HASH.parquet` holds one line for each number of each row, `steerability-HASH.parquet` one for each
item and steering. The hash is of everything that changes what the scorer says, so scores of two versions of
it, or of two judges, never mix; what it was made of stands in the file's metadata under `scorer`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from vsteer.store.schema import AXES, FLOAT, FLOATS, INT, LETTER_ORDERS, STRING, TIME, Column, arrow_schema

SCORES_FOLDER = "scores"
STEERABILITY = "steerability"

SCORES = (
    Column("row_id", STRING, "the row, in rows/*.parquet"),
    Column("row_finished_at", TIME, "that row's finished_at: a row that is computed again is scored again"),
    Column("scorer", STRING, "the scorer: refusal, repetition, length, characters, perplexity, judge"),
    Column("scorer_hash", STRING, "hash of everything that changes what the scorer says: 12 hex digits"),
    Column("name", STRING, "which of the scorer's numbers; a judge's is its rubric's name"),
    Column("value", FLOAT, "the number it gives", null="none: the text is too short, the judge unreadable"),
    Column(
        "note",
        STRING,
        "in words: a judge's reason, a phrase that was found, why value is null",
        null="no word",
    ),
)

# A family of configurations differs in nothing but the multiplier.
_FAMILY = tuple(column for column in AXES if column.name != "multiplier")

STEERABILITY_COLUMNS = (
    Column("scorer_hash", STRING, "hash of what changes these numbers: 12 hex digits"),
    Column("evaluation", STRING, "the evaluation's name"),
    Column("item_id", STRING, "the question, by the hash of its content"),
    Column("original_item_id", STRING, "the item before its letters were swapped: the same for both orders"),
    Column("letter_order", STRING, "whether the answers' letters are swapped", values=LETTER_ORDERS),
    *_FAMILY,
    Column("multipliers", FLOATS, "those with a finite logit difference, ascending; 0 is the baseline"),
    Column("points", INT, "how many they are"),
    Column("left_out", INT, "rows without one: failed, or an answer has no probability at all"),
    Column("baseline", FLOAT, "the logit difference at multiplier 0", null="none, or not finite"),
    Column("slope", FLOAT, "least squares of the logit difference on the multiplier", null="points < 2"),
    Column(
        "rank_correlation",
        FLOAT,
        "Spearman's, of the logit difference and the multiplier",
        null="points < 2, or all logit differences are equal",
    ),
    Column(
        "residual_sd",
        FLOAT,
        "standard deviation about the fitted line, with points - 2 degrees of freedom",
        null="points < 3",
    ),
    Column("wrong_way", INT, "1: slope < 0; avg() is the share of such items", null="where slope is"),
    Column("least_mass", FLOAT, "the least total_mass among the points", null="points is 0"),
)  # fmt: skip


def schema_of(scorer: str, scorer_hash: str, about: Mapping[str, Any]) -> pa.Schema:
    """A score file's schema; `about` is what the hash is of."""
    columns = STEERABILITY_COLUMNS if scorer == STEERABILITY else SCORES
    schema = arrow_schema(STEERABILITY if scorer == STEERABILITY else SCORES_FOLDER, columns)
    made = json.dumps({"hash": scorer_hash, **about}, ensure_ascii=False, sort_keys=True)
    return schema.with_metadata({**(schema.metadata or {}), "scorer": made})


def scores_path(folder: Path, scorer: str, scorer_hash: str) -> Path:
    return folder / SCORES_FOLDER / f"{scorer}-{scorer_hash}.parquet"


def score_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files with a line a number, and those of steerability."""
    files = sorted((folder / SCORES_FOLDER).glob("*.parquet"))
    per_item = [file for file in files if file.name.startswith(f"{STEERABILITY}-")]
    return [file for file in files if file not in per_item], per_item
