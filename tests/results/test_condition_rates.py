"""Hit and false-alarm rates of conditions on two data sets, and the areas, by plain counting."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import scipy.stats

from tests.results.made_up import ask, make_run, sweep
from vsteer.store.cosines import COSINES_SCHEMA, write_cosines
from vsteer.store.files import write_parquet

COSINES = {
    "harmful": [0.3, 0.4, 0.5, 0.6, 0.1, 0.2, 0.2, 0.9, 0.8, 0.7],
    "harmless": [0.0, 0.1, 0.2, 0.3, 0.0, -0.1, 0.1, 0.05, 0.2, 0.65],
}
CONDITIONS = [("above", 0.25), ("above", 0.2), ("below", 0.2)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    steered = [
        one
        for data in COSINES
        for one in sweep("toy", (1,), map(float, range(1, 1 + len(CONDITIONS))), evaluation=f"choice:{data}")
    ]
    folder = make_run(tmp_path / "run", steered, lambda cell: 1.0, items=10)
    prompts = duckdb.sql(
        "select * replace (split_part(evaluation, ':', 2) as data)"
        f" from read_parquet('{folder}/prompts.parquet')"
    ).to_arrow_table()
    write_parquet(folder / "prompts.parquet", prompts)
    table = pa.parquet.read_table(folder / "configs.parquet")
    records = table.to_pylist()
    for record in records:
        if record["vector"]:
            side, threshold = CONDITIONS[int(record["multiplier"]) - 1]
            record |= {"when_vector": "harm", "when_layer": 8, "when_token": "mean"}
            record |= {"when_side": side, "when_threshold": threshold}
    write_parquet(folder / "configs.parquet", pa.Table.from_pylist(records, table.schema))
    (folder / "vectors").mkdir(exist_ok=True)
    measured: list[dict[str, Any]] = [
        dict.fromkeys(COSINES_SCHEMA.names, "")
        | {"model": "toy-7b", "model_commit": "0123abcd", "dtype": "float32", "kv_cache_dtype": "auto"}
        | {"vector": "harm", "layer": 8, "token": "mean", "tokens": 9, "run_session": 1}
        | {"prompt_id": f"choice:{data}--{item}-original", "cosine": cosine}
        for data, cosines in COSINES.items()
        for item, cosine in enumerate(cosines)
    ]
    # of another layer, token and dtype, which no condition is about
    others: list[dict[str, Any]] = [
        {"layer": 3},
        {"token": "last"},
        {"dtype": "bfloat16", "model_identity": "of another dtype"},
    ]
    write_cosines(folder, [*measured, *({**measured[0], **other, "cosine": 1.0} for other in others)])
    return folder


def wilson(count: int, of: int = 10) -> tuple[float, float]:
    found = scipy.stats.binomtest(count, of).proportion_ci(method="wilson")
    return found.low, found.high


def area(data: str, other: str, side: str) -> float:
    pairs = [(a, b) if side == "above" else (b, a) for a, b in product(COSINES[data], COSINES[other])]
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def holds(cosine: float, side: str, threshold: float) -> bool:
    return cosine > threshold if side == "above" else cosine < threshold


def check(row: dict[str, Any]) -> None:
    side, threshold = row["side"], row["threshold"]
    held = sum(holds(cosine, side, threshold) for cosine in COSINES[row["data"]])
    false = sum(holds(cosine, side, threshold) for cosine in COSINES[row["other"]])
    assert (row["prompts"], row["held"], row["other_prompts"], row["false_alarms"]) == (10, held, 10, false)
    assert (row["hit_rate"], row["false_alarm_rate"]) == (held / 10, false / 10)
    assert (row["hit_low"], row["hit_high"]) == pytest.approx(wilson(held), abs=1e-12)
    assert (row["false_low"], row["false_high"]) == pytest.approx(wilson(false), abs=1e-12)
    assert row["auc"] == pytest.approx(area(row["data"], row["other"], side))
    assert (row["vector"], row["layer"], row["token"]) == ("harm", 8, "mean")


def test_rates_are_those_of_plain_counting(run: Path) -> None:
    found = ask("condition_rates", run)
    assert len(found) == 2 * len(CONDITIONS)
    for row in found:
        check(row)
    asked = ask("condition_rates", run, data="harmful", other="choice:harmless")
    assert asked == [row for row in found if row["data"] == "harmful"]
    # strictly above: the two prompts at 0.2 don't count
    (at,) = [row for row in asked if (row["side"], row["threshold"]) == ("above", 0.2)]
    assert (at["held"], at["false_alarms"]) == (7, 2)


def test_every_cosine_as_a_threshold_is_the_roc(run: Path) -> None:
    found = [
        row for row in ask("condition_rates", run, data="harmful", thresholds="all") if row["side"] == "above"
    ]
    every = {cosine for cosines in COSINES.values() for cosine in cosines} | {0.25, 0.2}
    assert {row["threshold"] for row in found} == every
    for row in found:
        check(row)
    # the area under these points, and the two corners
    points = sorted({(0.0, 0.0), (1.0, 1.0)} | {(row["false_alarm_rate"], row["hit_rate"]) for row in found})
    under = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(points))
    assert under == pytest.approx(found[0]["auc"])


def test_one_set_alone_has_no_false_alarms(run: Path) -> None:
    found = ask("condition_rates", run, data="harmful", other="nothing of that name")
    assert len(found) == len(CONDITIONS)
    assert {row["other"] for row in found} == {None}
    assert [row["held"] for row in found if row["threshold"] == 0.25] == [7]
