"""The columns as a list written by hand: changing one is changing what everybody's SQL reads."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from tests.store.makers import row, text_row, write_plan
from vsteer.store import schema as s
from vsteer.store.store import open_store

AXES = """
model VARCHAR, vector VARCHAR, vector_sha256 VARCHAR, norm VARCHAR, control VARCHAR, control_index INTEGER,
layers INTEGER[], layer INTEGER, depth DOUBLE, operation VARCHAR, multiplier DOUBLE, positions VARCHAR,
system VARCHAR
"""

WANTED = {
    "rows/*": f"""
row_id VARCHAR, config_id VARCHAR, item_id VARCHAR, prompt_id VARCHAR, evaluation VARCHAR, kind VARCHAR,
sample INTEGER, letter_order VARCHAR, {AXES}, status VARCHAR, error VARCHAR, text VARCHAR,
token_ids INTEGER[], finish_reason VARCHAR, choices VARCHAR[], choice_logprobs DOUBLE[],
choice_tokens INTEGER[], matching INTEGER, total_mass DOUBLE, p_match DOUBLE, logit_diff DOUBLE,
prompt_tokens INTEGER, completion_tokens INTEGER,
cached_tokens INTEGER, steered_tokens INTEGER, condition_met BOOLEAN, started_at TIMESTAMP,
finished_at TIMESTAMP, attempt INTEGER, engine VARCHAR, vllm_version VARCHAR, vector_file_sha256 VARCHAR,
run_session INTEGER
""",
    "configs": f"""
config_id VARCHAR, evaluation VARCHAR, kind VARCHAR, {AXES}, model_commit VARCHAR, dtype VARCHAR,
quantization VARCHAR, kv_cache_dtype VARCHAR, template VARCHAR, system_prompt VARCHAR, forced_prefix VARCHAR,
vector_recipe VARCHAR, when_vector VARCHAR, when_layer INTEGER, when_token VARCHAR, when_side VARCHAR,
when_threshold DOUBLE, max_tokens INTEGER, temperature DOUBLE, top_p DOUBLE, seed BIGINT, rows BIGINT
""",
    "prompts": """
prompt_id VARCHAR, item_id VARCHAR, evaluation VARCHAR, kind VARCHAR, data VARCHAR, data_sha256 VARCHAR,
category VARCHAR, letter_order VARCHAR, swapped_from VARCHAR, system VARCHAR, question VARCHAR,
prompt VARCHAR, token_ids INTEGER[], prompt_tokens INTEGER, choices VARCHAR[], matching INTEGER
""",
}


@pytest.fixture(params=[False, True], ids=["shards", "compacted"])
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    with open_store(tmp_path) as store:
        write_plan(store, 2)
        store.append(row(0))
        store.append(text_row(1))
        if request.param:
            store.compact()
    return tmp_path


@pytest.mark.parametrize("table", WANTED)
def test_the_columns_are_these(run: Path, table: str) -> None:
    with duckdb.connect() as database:
        described = database.sql(f"describe select * from '{run}/{table}.parquet'").fetchall()
    wanted = [tuple(column.split()) for column in WANTED[table].replace("\n", " ").split(",")]
    assert [(name, kind) for name, kind, *_ in described] == wanted


@pytest.mark.parametrize("table", WANTED)
def test_no_column_needs_quotes_in_sql(run: Path, table: str) -> None:
    names = [column.split()[0] for column in WANTED[table].replace("\n", " ").split(",")]
    with duckdb.connect() as database:
        database.sql(f"select {', '.join(names)} from '{run}/{table}.parquet'").fetchall()
        for name in names:
            database.sql(f"select {name}, count(*) from '{run}/{table}.parquet' group by {name}").fetchall()


def test_files_carry_a_word_on_each_column(run: Path) -> None:
    for file in (*run.glob("rows/*.parquet"), run / "configs.parquet", run / "prompts.parquet"):
        schema = pq.read_schema(file)
        assert all(len(field.metadata[b"about"]) > 10 for field in schema), file
        assert schema.metadata[b"vsteer"].endswith(b" 1"), file


def test_a_multiplier_is_found_by_the_number_in_the_grid(run: Path) -> None:
    with duckdb.connect() as database:
        query = f"select count(*) from '{run}/rows/*.parquet' where multiplier = -0.1"
        assert database.sql(query).fetchall() == [(2,)]


@pytest.mark.parametrize(
    ("given", "kept"), [(0.1, 0.1), (0.10000000149011612, 0.1), (-2, -2.0), (1.25, 1.25), (1 / 3, 0.33333334)]
)
def test_a_multiplier_is_the_shortest_number_of_its_float32(given: float, kept: float) -> None:
    assert s.plain_multiplier(given) == kept
