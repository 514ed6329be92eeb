"""What a query must not mix up: runs, models, evaluations, failed and retried rows, scores."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.results.made_up import Cell, Steered, ask, make_run, sweep, write_vector
from tests.store import makers
from vsteer.errors import StoreError, UsageError
from vsteer.results.queries import DIFFERENCES, FITS, MECHANISM, STATISTICS, queries
from vsteer.results.statistics_files import TABLES
from vsteer.results.views import connect_runs, readable, run_names, statements
from vsteer.store import mechanism
from vsteer.store.database import in_memory
from vsteer.store.scores import SCORES_SCHEMA
from vsteer.store.store import open_store
from vsteer.vectors.run_norms import norms_are_current, write_vector_norms

NAMES = """
    layer_peaks sign_asymmetry scaling multiplier_curves layer_transfer model_transfer capability_cost
    coherence_frontier letter_bias steerability system_prompt_interaction controls failures throughput
""".split()  # noqa: SIM905


def test_every_query_is_there_and_says_what_it_is() -> None:
    known = queries()
    assert set(NAMES) <= set(known)
    for name, query in known.items():
        about = query.about
        assert query.question.endswith("?"), name
        for part in ("\nParameters:", "\nColumns:\n", "\nCaveat:"):
            assert part in about, (name, part)


def test_a_query_says_that_it_needs_statistics_where_it_reads_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sweep("toy", (1,), (1.0,)), one)
    with connect_runs([run]) as database:
        for name, query in queries().items():
            found = database.execute("select json_serialize_sql(?::varchar)", [query.sql]).fetchall()
            parsed = str(found[0][0])
            # a name that the query itself gives to a step is none of the tables
            steps = set(re.findall(r'"key":"(\w+)"', parsed))
            read = set(re.findall(r'"table_name":"(\w+)"', parsed)) - steps
            wanted = {STATISTICS} if read & set(TABLES) else set()
            wanted |= {FITS} if "scaling" in read else set()
            wanted |= {DIFFERENCES} if "differences" in read else set()
            wanted |= {MECHANISM} if read & set(mechanism.TABLES) else set()
            assert query.needs == wanted, name


@pytest.mark.parametrize("name", sorted(queries()))
def test_every_query_has_its_columns_where_there_is_nothing_to_say(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [Steered(kind="open_ended", evaluation="open:toy")], lambda cell: 0.0)
    with connect_runs([run]) as database:
        result = database.execute(queries()[name].sql)
        columns = [column[0] for column in result.description]
        rows = result.fetchall()
    assert rows == [] or name == "throughput"
    assert len(columns) > 5
    lengthless = ("condition_rates", "failures", "throughput")
    if name not in lengthless and MECHANISM not in queries()[name].needs:
        assert "norm" in columns
        assert any(column.startswith("relative_norm") for column in columns) or name == "model_transfer"


def one(cell: Cell) -> float:
    return 1.0 + cell.item / 8 + cell.steered.multiplier * 2


def test_a_row_that_was_tried_again_counts_once(tmp_path: Path) -> None:
    vectors = sweep("toy", (1,), (1.0,))
    run = make_run(
        tmp_path / "run", vectors, lambda cell: None if cell.item == 2 else one(cell), compact=False
    )
    config = vectors[0].config("toy-7b")
    with connect_runs([run]) as database:
        failed = database.execute(
            "select row_id, prompt_id, item_id, config_id, vector from rows where status = 'error'"
        ).fetchall()
    assert len(failed) == 2
    with open_store(run) as store:
        for row_id, prompt_id, item_id, config_id, vector in failed:
            axes = config if vector else Steered().config("toy-7b")
            logit = one(Cell(Steered("toy", 1, 1.0) if vector else Steered(), 2, "original"))
            ids = {"row_id": row_id, "prompt_id": prompt_id, "item_id": item_id, "config_id": config_id}
            steered = {"steered_tokens": 20 if vector else 0, "attempt": 2}
            answer = {"logit_diff": logit, "p_match": 0.5, "text": None, "token_ids": None}
            plain = {"finish_reason": None, "vector_file_sha256": "cd" if vector else ""}
            store.append(makers.row(3, **{**axes, **ids, **answer, **plain, **steered}))
    (row,) = ask("layer_peaks", run)
    assert (row["items"], row["effect"]) == (4, pytest.approx(2.0))
    assert ask("failures", run) == []


def test_runs_are_asked_together_and_kept_apart(tmp_path: Path) -> None:
    """The second run's unsteered model says something else: each effect is against its own."""
    first = make_run(tmp_path / "a" / "run", sweep("toy", (1,), (1.0,)), one)
    other = make_run(
        tmp_path / "b" / "run", sweep("toy", (1,), (1.0,)), lambda cell: 5 + 3 * cell.steered.multiplier
    )
    found = {row["run"]: row["effect"] for row in ask("layer_peaks", first, other)}
    assert found == {str(first): pytest.approx(2.0), str(other): pytest.approx(3.0)}
    assert list(run_names([first])) == ["run"]


def test_evaluations_that_share_a_configurations_id_are_kept_apart(tmp_path: Path) -> None:
    vectors = [Steered("toy", 1, 1.0, evaluation=name) for name in ("choice:a", "choice:b")]
    assert vectors[0].config("m")["config_id"] == vectors[1].config("m")["config_id"]
    size = {"choice:a": 2.0, "choice:b": -1.0}
    run = make_run(
        tmp_path / "run", vectors, lambda c: size[c.steered.evaluation] * (1 + c.steered.multiplier)
    )
    assert [row["effect"] for row in ask("layer_peaks", run)] == pytest.approx([2.0, -1.0])


def test_one_model_in_two_dtypes_has_two_baselines(tmp_path: Path) -> None:
    vectors = [Steered("toy", 1, 1.0, dtype=dtype) for dtype in ("bfloat16", "float32")]
    run = make_run(
        tmp_path / "run",
        vectors,
        lambda cell: cell.steered.multiplier + (10 if cell.steered.dtype == "float32" else 0),
    )
    assert [row["effect"] for row in ask("layer_peaks", run)] == pytest.approx([1.0, 1.0])


def test_failures_are_named_and_counted(tmp_path: Path) -> None:
    """Of 12 rows two steered ones and a baseline fail, one steers nothing, one is missing."""

    def says(cell: Cell) -> Any:
        if cell.steered.vector and cell.item in (0, 1):
            return None
        if not cell.steered.vector and cell.item == 2:
            return None
        if cell.steered.vector and cell.item == 3:
            return {"logit_diff": 1.0, "steered_tokens": 0}
        return 1.0

    run = make_run(
        tmp_path / "run",
        sweep("toy", (1,), (1.0,)),
        says,
        items=6,
        left_out=lambda cell: cell.item == 5 and cell.steered.vector != "",
    )
    found = {row["problem"]: row for row in ask("failures", run)}
    assert {problem: row["rows"] for problem, row in found.items()} == {
        "error": 3,
        "missing": 1,
        "steered nothing": 1,
        "nothing to compare with": 1,
    }
    assert found["error"]["what"] == "too long: # prompt tokens exceed max_model_len #"
    assert (found["error"]["share"], found["error"]["configs"]) == (3 / 12, 2)
    # the item without a baseline is in no effect: those with one are items 3 and 4
    (peak,) = ask("layer_peaks", run)
    assert peak["items"] == 2


def test_throughput_is_rows_over_the_time_they_took(tmp_path: Path) -> None:
    """8 rows, a second each, one a second: 8 seconds from the first's start to the last's end."""
    run = make_run(tmp_path / "run", sweep("toy", (1,), (1.0,)), one)
    (row,) = ask("throughput", run)
    assert (row["rows"], row["good"], row["seconds"], row["rows_a_second"]) == (8, 8, 8.0, 1.0)
    # each has 20 prompt tokens, 16 of them from the cache, and one generated
    assert row["cached_share"] == pytest.approx(16 / 20)
    assert (row["computed_a_second"], row["generated_a_second"]) == (5.0, 1.0)
    assert row["ended"] - row["began"] == timedelta(seconds=8)


def test_a_clock_that_was_set_back_leaves_the_speed_unknown(tmp_path: Path) -> None:
    def says(cell: Cell) -> Any:
        return {"logit_diff": 1.0, "finished_at": makers.START - timedelta(hours=1)}

    (row,) = ask("throughput", make_run(tmp_path / "run", sweep("toy", (1,), (1.0,)), says))
    assert row["rows"] == 8
    assert {row[name] for name in ("seconds", "rows_a_second", "computed_a_second", "median_wait")} == {None}


def test_the_cost_in_capability(tmp_path: Path) -> None:
    """Steered, the model gets one of four right that it got right before; three were right unsteered."""
    logprobs = {True: [-0.1, -3.0], False: [-3.0, -0.1]}

    def says(cell: Cell) -> Any:
        if cell.steered.evaluation == "choice:toy":
            return 2.0 * cell.steered.multiplier
        right = cell.item < (2 if cell.steered.vector else 3)
        return {"logit_diff": 2.9 if right else -2.9, "choice_logprobs": logprobs[right]}

    steered = [Steered("toy", 1, 1.0), Steered("toy", 1, 1.0, evaluation="choice:mmlu")]
    run = make_run(tmp_path / "run", steered, says)
    (row,) = ask("capability_cost", run)
    assert (row["capability"], row["items"]) == ("choice:mmlu", 4)
    assert (row["accuracy"], row["baseline_accuracy"], row["cost"]) == pytest.approx((0.5, 0.75, 0.25))
    assert row["cost_se"] == pytest.approx(math.sqrt(0.25 * 0.75 * 4 / 3) / 2)
    assert (row["evaluation"], row["effect"]) == ("choice:toy", pytest.approx(2.0))
    assert ask("capability_cost", run, capability="arc") == []


def test_the_frontier_of_effect_and_coherence(tmp_path: Path) -> None:
    """Layer 1 has more effect than 2 at a lower perplexity; layer 3 has most, and the highest."""
    texts = [Steered("toy", n, 1.0, kind="open_ended", evaluation="open:toy") for n in (1, 2, 3)]
    effect = {None: 0.0, 1: 2.0, 2: 1.0, 3: 3.0}
    run = make_run(
        tmp_path / "run", [*sweep("toy", (1, 2, 3), (1.0,)), *texts], lambda cell: effect[cell.steered.layer]
    )
    assert ask("coherence_frontier", run) == []
    perplexity = {None: 5.0, 1: 6.0, 2: 8.0, 3: 20.0}
    with connect_runs([run]) as database:
        rows = database.execute(
            "select row_id, finished_at, layer from rows where kind = 'open_ended'"
        ).fetchall()
    scored = [(row_id, at, perplexity[layer]) for row_id, at, layer in rows]
    # of a text that was computed again since
    scored.append((rows[0][0], rows[0][1] - timedelta(seconds=9), 1e6))
    scores = [
        {"row_id": row_id, "row_finished_at": at, "value": value, "name": "perplexity", "note": None}
        | {"scorer": "perplexity", "scorer_hash": "abc"}
        for row_id, at, value in scored
    ]
    (run / "scores").mkdir()
    pq.write_table(pa.Table.from_pylist(scores, SCORES_SCHEMA), run / "scores" / "perplexity-abc.parquet")
    # a sound table of something else, which would end `read_parquet('scores/*.parquet')`
    pq.write_table(pa.table({"slope": [1.0]}), run / "scores" / "steerability-def.parquet")
    found = ask("coherence_frontier", run)
    assert [(row["layers"], row["score"], row["effect"], row["frontier"]) for row in found] == [
        ([1], 6.0, 2.0, True),
        ([2], 8.0, 1.0, False),
        ([3], 20.0, 3.0, True),
    ]
    assert (run / "set-aside" / "steerability-def.parquet").exists()
    counted = duckdb.sql(f"select count(*) from read_parquet('{run}/scores/*.parquet')").fetchall()
    assert counted == [(len(scored),)]
    assert {row["baseline_score"] for row in found} == {5.0}


def test_lengths_are_read_from_the_vectors_files(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sha256 = write_vector(run, "toy", [3.0, 4.0], stream=10.0)
    assert not norms_are_current(run)
    write_vector_norms(run)
    assert norms_are_current(run)
    make_run(run, sweep("toy", (0, 1), (-2.0,), sha256=sha256), one)
    found = {
        row["layers"][0]: row["relative_norm"] for row in ask("multiplier_curves", run) if row["multiplier"]
    }
    assert found == pytest.approx({0: 2 * 3 / 10, 1: 2 * 4 / 10})


def test_a_vector_that_is_a_link_to_nowhere_keeps_nobody_from_the_lengths(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sweep("toy", (0,), (1.0,)), one)
    write_vector(run, "toy", [3.0], stream=10.0)
    write_vector_norms(run)
    (run / "vectors" / "gone.safetensors").symlink_to("/nowhere/at/all")
    assert not norms_are_current(run)
    write_vector_norms(run)
    assert norms_are_current(run)
    assert (run / "set-aside" / "gone.safetensors").is_symlink()


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        connect_runs([tmp_path])
    with pytest.raises(UsageError):
        connect_runs([])
    run = make_run(tmp_path / "run", sweep("toy", (1,), (1.0,)), one)
    with pytest.raises(UsageError, match="twice"):
        connect_runs([run, run])


def test_no_room_for_an_answer_is_not_called_a_damaged_run(tmp_path: Path) -> None:
    sorting = "select count(distinct hash(range)) from range(1_000_000)"
    with (
        pytest.raises(StoreError, match="more room than there is") as refused,
        readable(tmp_path),
        in_memory(memory_limit="4MB", threads=1, temp_directory="") as database,
    ):
        database.sql(sorting).fetchall()
    assert "TMPDIR" in refused.value.hint


def test_names_that_sql_would_take_for_something_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "it's a [run]*", [replace(sweep("toy", (1,), (1.0,))[0], vector="to'y")], one)
    (row,) = ask("layer_peaks", run)
    assert (row["run"], row["vector"]) == ("it's a [run]*", "to'y")


def test_statements_end_at_a_lines_end() -> None:
    assert statements("-- a; b\nselect ';' as a;\n  -- c\nselect 2;\n") == ["select ';' as a", "select 2"]


def test_a_querys_words_name_its_columns() -> None:
    """Every column that a query's comment explains is one that it has; the axes need no word."""
    for name, query in queries().items():
        listed = re.search(r"Columns:\n(.*?)\nCaveat:", query.about, re.S)
        assert listed, name
        for line in listed[1].splitlines():
            explained = re.match(r"  ([a-z_]+(?:, [a-z_]+)*)  ", line)
            for word in explained[1].split(", ") if explained else []:
                assert word.lstrip("_") in query.sql, (name, word)
