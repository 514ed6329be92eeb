"""mechanism/NAME/*.parquet beside a run's rows: what `vsteer mechanism` found out about one steering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from vsteer.store.files import write_sealed
from vsteer.store.schema import FLOAT, INT, STRING, Column, arrow_schema
from vsteer.store.sound import faults_of_tables, set_aside_damaged

MECHANISM_FOLDER = "mechanism"

# Which steering a table is about: every table begins with these.
KEY = (
    Column("model", STRING, "the model, as it was named"),
    Column("vector", STRING, "the vector's name"),
    Column("injected_layer", INT, "the layer behind which it is added"),
    Column("multiplier", FLOAT, "what the vector is multiplied by"),
)
CONTROL = (
    Column("control", STRING, "random: a control drawn at random; empty: none", values=("", "random")),
    Column("control_index", INT, "which one of several controls", null="no control"),
)
WRITER = (
    Column("writer", STRING, "who writes to the stream", values=("injected", "head", "mlp")),
    Column("writer_layer", INT, "its layer"),
    Column("writer_head", INT, "its head", null="it is no head"),
)
EDGES = (
    *KEY,
    *CONTROL,
    *WRITER,
    Column(
        "reader",
        STRING,
        "who reads the stream",
        values=("query", "key", "value", "mlp", "unembedding"),
    ),
    Column("reader_layer", INT, "its layer; the unembedding's is the number of layers"),
    Column("score", FLOAT, "the effect that attribution gives the edge: mean over the listed positions"),
    Column("score_in_steered", FLOAT, "the same over texts that the steered model wrote", null="no text"),
    Column("score_in_unsteered", FLOAT, "and over those of the unsteered model", null="no text"),
    Column("effect", FLOAT, "the edge's effect by exact patching", null="not patched"),
)
NODES = (
    *KEY,
    *CONTROL,
    *WRITER,
    Column("score", FLOAT, "the sum of the scores of the edges that leave it"),
    Column("to_unembedding", FLOAT, "the score of its edge to the unembedding"),
)
POSITIONS = (
    *KEY,
    Column("text_id", STRING, "the text, in texts.jsonl"),
    Column("written", STRING, "by which model", values=("steered", "unsteered")),
    Column("position", INT, "the token that is predicted from, from 0"),
    Column("steered_token_id", INT, "the steered pass's most likely next token"),
    Column("unsteered_token_id", INT, "the unsteered pass's"),
    Column("steered_token", STRING, "the first as text"),
    Column("unsteered_token", STRING, "the second"),
)
DIMENSIONS = (
    *KEY,
    *CONTROL,
    Column("dimension", INT, "the dimension of the stream"),
    Column("value", FLOAT, "the vector's value there"),
    Column("score", FLOAT, "the effect that attribution gives it: mean over the listed positions"),
)
CIRCUITS = (
    *KEY,
    *CONTROL,
    Column("size", INT, "how many edges were asked for"),
    Column("edges", INT, "how many it has"),
    Column("share", FLOAT, "of all edges"),
    Column("texts", INT, "texts that it was measured on, other ones than its edges were chosen on"),
    Column("positions", INT, "their listed positions"),
    Column("same_token", FLOAT, "share of positions where the steered pass's most likely token is its own"),
    Column("kl_from_steered", FLOAT, "1 - KL(steered, circuit) / KL(steered, unsteered)"),
    Column("kl_to_steered", FLOAT, "1 - KL(circuit, steered) / KL(unsteered, steered)"),
    Column("logprob", FLOAT, "the log-probability of the steered pass's token: its rise over the whole rise"),
)
OVERLAPS = (
    *KEY,
    Column("other", STRING, "the vector that it is compared with; with a number, a random one of its length"),
    Column("size", INT, "how many edges were asked for"),
    Column("overlap", FLOAT, "the share of the smaller circuit's edges that both have"),
    Column("random_overlap", FLOAT, "the same with a random circuit of the other's size"),
    Column("cosine", FLOAT, "of the two vectors at the injected layer"),
)
FREEZING = (
    *KEY,
    *CONTROL,
    Column("condition", STRING, "what was frozen, or whose inputs the vector was taken out of"),
    Column("measure", STRING, "log_odds of the matching answer, or refusal of a text"),
    Column("item_id", STRING, "the question"),
    Column("letter_order", STRING, "original, or swapped for a lettered question"),
    Column("value", FLOAT, "what was measured"),
    Column("unsteered", FLOAT, "the same of the unsteered model"),
    Column("text", STRING, "what was written", null="nothing is"),
)
VALUES = (
    *KEY,
    *CONTROL,
    Column("layer", INT, "the head's layer"),
    Column("head", INT, "the head"),
    Column("length", FLOAT, "how long its value vector is"),
    Column("rank", INT, "the token's place, from 1"),
    Column("token", STRING, "the token"),
    Column("logit", FLOAT, "its logit behind final norm and unembedding"),
)
SPARSITY = (
    *KEY,
    Column("sparse", STRING, "the sparse vector's name"),
    Column("file", STRING, "its file in the folder"),
    Column("method", STRING, "how its dimensions were chosen"),
    Column("ratio", FLOAT, "the threshold that decided how many"),
    Column("seed", INT, "of the draw", null="nothing was drawn"),
    Column("dimensions", INT, "how many are left"),
    Column("share", FLOAT, "of all dimensions"),
    Column("cosine", FLOAT, "with the whole vector"),
)
TABLES: Mapping[str, Sequence[Column]] = {
    "edges": EDGES,
    "nodes": NODES,
    "positions": POSITIONS,
    "dimensions": DIMENSIONS,
    "circuits": CIRCUITS,
    "circuit_overlaps": OVERLAPS,
    "freezing": FREEZING,
    "head_values": VALUES,
    "sparsity": SPARSITY,
}
SCHEMAS = {name: arrow_schema(name, columns) for name, columns in TABLES.items()}


def write_table(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    write_sealed(folder / f"{name}.parquet", pa.Table.from_pylist(list(rows), SCHEMAS[name]))


def sound_tables(run: Path, name: str) -> list[Path]:
    """The tables of a name beside a run's rows that can be read; the others are set aside with a warning."""
    files = sorted((run / MECHANISM_FOLDER).glob(f"*/{name}.parquet"))
    faults = faults_of_tables(run, dict.fromkeys(files, SCHEMAS[name]))
    for file, why in faults.items():
        set_aside_damaged(run, {file: why}, file.parent, "`vsteer mechanism` makes it anew")
    return [file for file, why in faults.items() if not why]
