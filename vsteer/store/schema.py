"""The columns of rows/*.parquet, configs.parquet and prompts.parquet, each with what it holds.

The tables in docs/results.md are made from these, and the files carry the same words as field metadata.
Times are UTC without a zone: DuckDB's Python client needs pytz to hand out a zoned one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from vsteer.controls import CONTROL_VECTORS
from vsteer.operations import DESCRIBED_OPERATIONS

# The version of the columns and of the folder's layout. A folder with a newer one is refused.
SCHEMA_VERSION = 1

STRING, INT, LONG, FLOAT, TIME = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.timestamp("us")
BOOL = pa.bool_()
STRINGS, INTS, FLOATS = pa.list_(STRING), pa.list_(INT), pa.list_(FLOAT)

KINDS = ("choice", "open_ended")
LETTER_ORDERS = ("original", "swapped")
# What follows the engine's name where it computed a row as a fork.
FORKS = " forks"
CONTROLS = ("", *CONTROL_VECTORS, "system")


@dataclass(frozen=True)
class Column:
    name: str
    type: pa.DataType
    about: str
    null: str = ""  # when it is null; empty: never
    values: tuple[str, ...] = ()  # the only ones it takes; empty: any


# What a configuration varies. Rows have these too, so that plain SQL needs no join.
AXES = (
    Column("model", STRING, "the model, as the grid names it"),
    Column("vector", STRING, "the vector's name; empty for a baseline"),
    Column("vector_sha256", STRING, "the stored vector's hash, its norm applied; empty for a baseline"),
    Column(
        "norm",
        STRING,
        "the norm that was applied: raw, unit, caa, deviation, residual:0.1; empty for a baseline",
    ),
    Column("control", STRING, "which kind of control the configuration is; empty: none", values=CONTROLS),
    Column("control_index", INT, "which one of several controls of a kind", null="not one of several"),
    Column("layers", INTS, "the layers that are steered, from 0; empty for a baseline"),
    Column("layer", INT, "the layer that is steered, from 0", null="baseline, or several layers at once"),
    Column("depth", FLOAT, "(layer + 1) / number of layers", null="where layer is"),
    Column(
        "operation",
        STRING,
        f"what is done to the stream, empty for a baseline: {DESCRIBED_OPERATIONS}",
    ),
    Column(
        "multiplier",
        FLOAT,
        "what the stored vector is multiplied by, the shortest number of its float32; 0 is a baseline",
        null="an operation that has none, or a dose that no multiplier has",
    ),
    Column(
        "positions",
        STRING,
        "which tokens are steered: all, after_prompt, ..., and under which condition on the prompt, as in "
        "`all when harm at layer 8, mean above 0.05`; empty for a baseline",
    ),
    Column("system", STRING, "the system prompt's name; empty: none"),
)

ROWS = (
    Column("row_id", STRING, "hash of configuration, item and sample: 32 hex digits"),
    Column("config_id", STRING, "the configuration, in configs.parquet"),
    Column("item_id", STRING, "the question, by the hash of its content"),
    Column("prompt_id", STRING, "the rendered prompt, in prompts.parquet"),
    Column("evaluation", STRING, "the evaluation's name"),
    Column("kind", STRING, "what is asked for: one of given answers, or a text", values=KINDS),
    Column("sample", INT, "which sample of the same prompt, from 0"),
    Column("letter_order", STRING, "whether the answers' letters are swapped", values=LETTER_ORDERS),
    *AXES,
    Column(
        "status",
        STRING,
        "whether the row has a result or failed",
        values=("ok", "error"),
    ),
    Column("error", STRING, "why it failed", null="status is ok"),
    Column("text", STRING, "what was generated", null="failed, or a choice"),
    Column("token_ids", INTS, "what was generated, as tokens", null="failed, or a choice"),
    Column("finish_reason", STRING, "why generation ended: stop, length", null="failed, or a choice"),
    Column(
        "choices",
        STRINGS,
        "the answers that were scored, in the prompt's order",
        null="open-ended, or failed",
    ),
    Column("choice_logprobs", FLOATS, "log-probability of each of choices", null="where choices is"),
    Column("choice_tokens", INTS, "how many tokens each of choices has", null="where choices is"),
    Column("matching", INT, "which of choices matches the behaviour, from 0", null="where choices is"),
    Column("total_mass", FLOAT, "the probability of all choices together", null="where choices is"),
    Column(
        "p_match",
        FLOAT,
        "probability of the matching choice over total_mass",
        null="where choices is, or total_mass is 0",
    ),
    Column(
        "logit_diff",
        FLOAT,
        "log p(matching) - log p(not matching)",
        null="where choices is, or nothing stands against the match",
    ),
    Column("prompt_tokens", INT, "tokens of the prompt", null="failed before that was known"),
    Column("completion_tokens", INT, "tokens generated", null="failed"),
    Column("cached_tokens", INT, "prompt tokens served from the prefix cache", null="failed"),
    Column("steered_tokens", INT, "positions that were steered, counted in the engine", null="failed"),
    Column(
        "condition_met",
        BOOL,
        "whether the configuration's condition holds on the prompt; where not, nothing was steered and the "
        "row has what the baseline's row has",
        null="no condition, or it could not be decided",
    ),
    Column("started_at", TIME, "when the row was handed to the engine, UTC"),
    Column("finished_at", TIME, "when its result came back, UTC"),
    Column("attempt", INT, "how many times this row was tried, this one included"),
    Column(
        "engine", STRING, f"what computed it: vllm, or vllm{FORKS} where it is a fork of an unsteered pass"
    ),
    Column("vllm_version", STRING, "vLLM's version; empty for another engine"),
    Column("vector_file_sha256", STRING, "the vector's file's hash; empty for a baseline"),
    Column("run_session", INT, "which start of the run wrote it, from 1; see events.jsonl"),
)

CONFIGS = (
    Column("config_id", STRING, "hash of everything that changes an output but item and sample"),
    Column("evaluation", STRING, "the evaluation's name"),
    Column("kind", STRING, "what is asked for: one of given answers, or a text", values=KINDS),
    *AXES,
    Column("model_commit", STRING, "the commit or content hash of the model's files"),
    Column("dtype", STRING, "the dtype of weights and activations"),
    Column("quantization", STRING, "how the weights are quantised; empty: they aren't"),
    Column("kv_cache_dtype", STRING, "the dtype of the KV cache"),
    Column("template", STRING, "how a question becomes a prompt: chat with the template's hash, or plain"),
    Column("system_prompt", STRING, "the system prompt's text; empty: none"),
    Column("forced_prefix", STRING, "what the answer is made to begin with; empty: nothing"),
    Column(
        "vector_recipe", STRING, "how the vector is made, or its file's hash, as JSON; empty for a baseline"
    ),
    Column("when_vector", STRING, "the name of the condition's vector", null="no condition"),
    Column("when_layer", INT, "the layer whose stream is compared with it", null="no condition"),
    Column("when_token", STRING, "which of the prompt's tokens: mean, last", null="no condition"),
    Column("when_side", STRING, "on which side of the threshold it holds: above, below", null="no condition"),
    Column("when_threshold", FLOAT, "what the cosine must be above or below", null="no condition"),
    Column("max_tokens", INT, "how many tokens are generated at most"),
    Column("temperature", FLOAT, "the sampling temperature; 0 is greedy"),
    Column("top_p", FLOAT, "the sampling's nucleus; 1 is all"),
    Column("seed", LONG, "the run's seed, from which each prompt's and sample's is made"),
    Column("rows", LONG, "how many rows are planned"),
)

PROMPTS = (
    Column("prompt_id", STRING, "hash of the rendered prompt and what is scored on it"),
    Column("item_id", STRING, "the question, by the hash of its content"),
    Column("evaluation", STRING, "the evaluation's name"),
    Column("kind", STRING, "what is asked for: one of given answers, or a text", values=KINDS),
    Column("data", STRING, "the data set: a built-in behaviour's name or a file's"),
    Column("data_sha256", STRING, "the data file's hash"),
    Column("category", STRING, "the item's category in its data set; empty: none"),
    Column("letter_order", STRING, "whether the answers' letters are swapped", values=LETTER_ORDERS),
    Column("swapped_from", STRING, "the item whose letters were swapped; empty: an original"),
    Column("system", STRING, "the system prompt's name; empty: none"),
    Column("question", STRING, "the question as in the data set"),
    Column("prompt", STRING, "the whole prompt as rendered, forced prefix included"),
    Column("token_ids", INTS, "the prompt's tokens"),
    Column("prompt_tokens", INT, "how many they are"),
    Column("choices", STRINGS, "the answers that are scored", null="open-ended"),
    Column("matching", INT, "which of choices matches the behaviour, from 0", null="open-ended"),
)


def arrow_schema(name: str, columns: Sequence[Column]) -> pa.Schema:
    return pa.schema(
        [pa.field(c.name, c.type, bool(c.null), {"about": c.about}) for c in columns],
        metadata={"vsteer": f"{name} {SCHEMA_VERSION}"},
    )


# What files of earlier versions lack. It is null there, and such a file stays as it is.
ADDED = frozenset({"condition_met", "when_vector", "when_layer", "when_token", "when_side", "when_threshold"})


def as_written(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """The schema as a file with columns of these names must have it, which may be of an earlier version."""
    there = set(names)
    return pa.schema([field for field in schema if field.name in there or field.name not in ADDED])


def with_added(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table as the schema has it, with nulls in what its file lacks."""
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)


ROWS_SCHEMA = arrow_schema("rows", ROWS)
CONFIGS_SCHEMA = arrow_schema("configs", CONFIGS)
PROMPTS_SCHEMA = arrow_schema("prompts", PROMPTS)
# How long the vectors are: vsteer/vectors/run_norms.py says what its columns mean.
NORMS_SCHEMA = pa.schema(
    {
        "file": STRING,
        "vector_sha256": STRING,
        "layer": INT,
        "vector_norm": FLOAT,
        "stream_norm": FLOAT,
        "made_in_model": STRING,
        "made_in_revision": STRING,
        "made_in_sha256": STRING,
        "made_at_layer": INT,
        "derived": STRING,
    }
)

# The multipliers that were found for doses: vsteer/run/kl_doses.py says how.
KL_DOSES_SCHEMA = pa.schema(
    {
        "dose_id": STRING,
        "config_ids": STRINGS,
        "model": STRING,
        "vector": STRING,
        "norm": STRING,
        "control": STRING,
        "control_index": INT,
        "layers": INTS,
        "operation": STRING,
        "kl": FLOAT,
        "sign": INT,
        "text": STRING,
        "text_sha256": STRING,
        "multiplier": FLOAT,
        "measured_kl": FLOAT,
        "why": STRING,
    }
)

SQL_TYPES = {
    STRING: "VARCHAR",
    INT: "INTEGER",
    LONG: "BIGINT",
    FLOAT: "DOUBLE",
    TIME: "TIMESTAMP",
    BOOL: "BOOLEAN",
    STRINGS: "VARCHAR[]",
    INTS: "INTEGER[]",
    FLOATS: "DOUBLE[]",
}


@lru_cache(maxsize=65536)
def plain_multiplier(multiplier: float) -> float:
    """The shortest number whose nearest float32 is the multiplier's.

    An engine multiplies by a float32. The float32 of 0.1 is 0.10000000149011612 as a float64, and
    `where multiplier = 0.1` would find nothing; here it is 0.1.
    """
    with np.errstate(over="ignore"):
        return float(str(np.float32(multiplier)))
