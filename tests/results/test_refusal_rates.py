"""Shares of refusals against scipy's intervals, log-odds as they were made up; sets kept apart."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats

from tests.results.made_up import Cell, ask, make_run, sweep
from vsteer.results.views import connect_runs
from vsteer.store.files import write_parquet
from vsteer.store.scores import SCORES_SCHEMA

ITEMS = 10
# how many of the ten refuse: unsteered, at layer 1, at layer 2
REFUSALS = {"harmful": {None: 9, 1: 1, 2: 8}, "harmless": {None: 0, 1: 0, 2: 6}}
LOG_ODDS = {"harmful": {None: 4.0, 1: -3.0, 2: 3.5}, "harmless": {None: -5.0, 1: -6.0, 2: 2.0}}
HASH = "0123456789ab"


def refuses(data: str, layer: int | None, item: int) -> bool:
    """Layer 2 makes the last ones refuse, where the unsteered model refuses the first ones."""
    count = REFUSALS[data][layer]
    return item >= ITEMS - count if layer == 2 else item < count


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Texts and log-odds of two sets, and a choice evaluation that has nothing to do with them."""
    steered = [
        one
        for data in REFUSALS
        for name, kind in ((f"texts:{data}", "open_ended"), (f"tokens:{data}", "choice"))
        for one in sweep("toy", (1, 2), (1.0,), evaluation=name, kind=kind)
    ]

    def says(cell: Cell) -> Any:
        kind, _, data = cell.steered.evaluation.partition(":")
        # spread over the items, all around the mean
        return LOG_ODDS[data][cell.steered.layer] + (cell.item - 4.5) / 10 if kind == "tokens" else 1.0

    run = make_run(tmp_path / "run", [*steered, *sweep("toy", (1,), (1.0,))], says, items=ITEMS)
    named = (
        "select * replace (split_part(evaluation, ':', 2) as data,"
        " case when evaluation like 'tokens:%' then ['I or As', 'any other token'] else choices end"
        " as choices)"
        f" from read_parquet('{run}/prompts.parquet')"
    )
    prompts = duckdb.sql(named).to_arrow_table()
    pq.write_table(prompts, run / "prompts.parquet")
    write_scores(run)
    return run


def write_scores(run: Path, *left_out: tuple[str, int | None, int]) -> None:
    """What the scorer says of every text, except those left out; and what must not count as it."""
    with connect_runs([run]) as database:
        texts = database.execute(
            "select row_id, finished_at, split_part(evaluation, ':', 2), layer,"
            " split_part(item_id, '-', 2)::int from rows where kind = 'open_ended'"
        ).fetchall()
    scores = []
    for row_id, at, data, layer, item in texts:
        if (data, layer, item) in left_out:
            continue
        score = {"row_id": row_id, "row_finished_at": at, "scorer_hash": HASH, "note": None}
        scores += [
            {**score, "scorer": "refusal", "name": "refusal", "value": float(refuses(data, layer, item))},
            # a judge whose rubric is called refusal, and the score of a text that was computed again since
            {**score, "scorer": "judge", "name": "refusal", "value": 7.0},
            {**score, "scorer": "refusal", "name": "refusal", "value": 1.0, "scorer_hash": "old"}
            | {"row_finished_at": at - timedelta(seconds=9)},
        ]
    (run / "scores").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(scores, SCORES_SCHEMA), run / "scores" / f"refusal-{HASH}.parquet")


def wilson(count: int, texts: int = ITEMS) -> tuple[float, float]:
    found = scipy.stats.binomtest(count, texts).proportion_ci(method="wilson")
    return found.low, found.high


def test_shares_and_log_odds_stand_beside_the_unsteered_models(run: Path) -> None:
    found = {(row["data"], row["layers"][0]): row for row in ask("refusal_rates", run)}
    assert list(found) == [("harmful", 1), ("harmless", 1), ("harmful", 2), ("harmless", 2)]
    for (data, layer), row in found.items():
        steered, unsteered = REFUSALS[data][layer], REFUSALS[data][None]
        assert (row["texts"], row["refusals"], row["baseline_refusals"]) == (ITEMS, steered, unsteered)
        assert (row["rate"], row["baseline_rate"]) == (steered / ITEMS, unsteered / ITEMS)
        assert (row["rate_low"], row["rate_high"]) == pytest.approx(wilson(steered))
        assert (row["baseline_low"], row["baseline_high"]) == pytest.approx(wilson(unsteered))
        assert (row["evaluation"], row["scorer_hash"], row["tokens"]) == (f"texts:{data}", HASH, "I or As")
        assert row["items"] == ITEMS
        assert row["log_odds"] == pytest.approx(LOG_ODDS[data][layer])
        assert row["baseline_log_odds"] == pytest.approx(LOG_ODDS[data][None])
        assert row["log_odds_change"] == pytest.approx(LOG_ODDS[data][layer] - LOG_ODDS[data][None])
        assert row["log_odds_change_se"] == pytest.approx(0.0, abs=1e-12)
        assert (row["held"], row["baseline_held"]) == (0, 0)
    # items 0 to 8 refuse unsteered, 2 to 9 at layer 2: one began, two stopped
    assert (found["harmful", 2]["began"], found["harmful", 2]["stopped"]) == (1, 2)
    assert (found["harmful", 1]["began"], found["harmful", 1]["stopped"]) == (0, 8)


def test_a_text_counts_where_it_and_its_unsteered_one_are_scored(run: Path) -> None:
    write_scores(run, ("harmful", None, 0), ("harmful", 1, 5), ("harmless", 1, 5))
    found = {(row["data"], row["layers"][0]): row for row in ask("refusal_rates", run)}
    # without items 0 and 5: unsteered 1-4, 6-8 refuse, and at layer 1 none does
    row = found["harmful", 1]
    assert (row["texts"], row["refusals"], row["baseline_refusals"], row["stopped"]) == (8, 0, 7, 7)
    assert (row["rate_low"], row["rate_high"]) == pytest.approx(wilson(0, 8), abs=1e-12)
    assert (found["harmful", 2]["texts"], found["harmless", 1]["texts"]) == (9, 9)


def test_either_measure_stands_alone(run: Path, tmp_path: Path) -> None:
    (run / "scores" / f"refusal-{HASH}.parquet").unlink()
    found = ask("refusal_rates", run)
    assert [(row["texts"], row["items"]) for row in found] == [(None, ITEMS)] * 4
    texts = sweep("toy", (1,), (1.0,), evaluation="texts:harmful", kind="open_ended")
    alone = make_run(tmp_path / "alone", texts, lambda cell: 1.0, items=ITEMS)
    write_scores(alone)
    (row,) = ask("refusal_rates", alone)
    assert (row["texts"], row["items"], row["log_odds"]) == (ITEMS, None, None)


def test_log_odds_at_their_bound_are_counted(tmp_path: Path) -> None:
    """A P of 1 in float32 is held at 1 - 2^-20, as the rows have it."""
    bound = math.log(2**20 - 1)

    def says(cell: Cell) -> float:
        return bound if cell.item < (3 if cell.steered.vector else 1) else 13.8

    run = make_run(tmp_path / "run", sweep("toy", (1,), (1.0,)), says)
    prompts = pq.read_table(run / "prompts.parquet").to_pylist()
    for prompt in prompts:
        prompt["choices"] = ["I", "any other token"]
    table = pa.Table.from_pylist(prompts, pq.read_schema(run / "prompts.parquet"))
    write_parquet(run / "prompts.parquet", table)
    (row,) = ask("refusal_rates", run)
    assert (row["items"], row["held"], row["baseline_held"]) == (4, 3, 1)
