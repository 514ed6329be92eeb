"""The strict writer: what is right comes back the same, and nothing else gets in."""

from __future__ import annotations

import math
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.makers import START, Record, config, error_row, prompt, row, row_id, stored, text_row
from vsteer.store.records import RecordError, config_buffer, prompt_buffer, row_buffer
from vsteer.store.schema import ROWS_SCHEMA
from vsteer.store.store import open_store

MADE = {"choice": row, "text": text_row, "error": error_row}
# By hand, and not from the schema that is tested.
INTS = {"sample", "control_index", "layer", "matching", "attempt", "run_session"}
INTS |= {"prompt_tokens", "completion_tokens", "cached_tokens", "steered_tokens"}
FLOATS = {"depth", "multiplier", "total_mass", "p_match", "logit_diff"}
LISTS = {"layers": int, "token_ids": int, "choices": str, "choice_logprobs": float, "choice_tokens": int}
TIMES = ("started_at", "finished_at")
NULLABLE = {"control_index", "layer", "depth", "multiplier", "error", "text", "token_ids", "finish_reason"}
NULLABLE |= {"choices", "choice_logprobs", "choice_tokens", "matching", "total_mass", "p_match", "logit_diff"}
NULLABLE |= {"prompt_tokens", "completion_tokens", "cached_tokens", "steered_tokens", "condition_met"}

in_lists = st.one_of(st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=3), st.none())
odd = [np.float64(1), np.int32(1), {}, object(), START.replace(tzinfo=None), ["\ud800"], "\ud800", [True]]
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(
        st.one_of(st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=3), st.none()), max_size=3
    ),
    st.sampled_from(
        [np.float64(1), np.int32(1), {}, object(), START.replace(tzinfo=None), ["\ud800"], "\ud800"]
    ),
)


def is_of_type(name: str, value: Any) -> bool:
    """What a column takes, written a second time and more slowly."""
    if value is None:
        return name in NULLABLE
    if name == "condition_met":
        return type(value) is bool
    if name in INTS:
        return type(value) is int and -(2**31) <= value <= 2**31 - 1
    if name in FLOATS:
        return type(value) is float and not math.isnan(value)
    if name in TIMES:
        return type(value) is datetime and value.utcoffset() is not None
    if name in LISTS:
        inner = {int: "sample", float: "depth", str: "model"}[LISTS[name]]
        return type(value) in (list, tuple) and all(v is not None and is_of_type(inner, v) for v in value)
    return type(value) is str and value.encode(errors="replace").decode() == value


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_what_is_right_comes_back_the_same(tmp_path: Path, make: Any) -> None:
    given = [make(number) for number in range(20)]
    with open_store(tmp_path) as store:
        for record in given:
            store.append(record)
    with duckdb.connect() as database:
        result = database.sql(f"select * from '{tmp_path}/rows/*.parquet' order by started_at")
        back = [dict(zip(result.columns, values, strict=True)) for values in result.fetchall()]
    for record in given:
        for name in TIMES:
            record[name] = record[name].replace(tzinfo=None)
    assert back == given


def test_times_of_another_zone_are_kept_as_utc() -> None:
    tokyo = timezone(timedelta(hours=9))
    buffer = row_buffer()
    buffer.add(row(started_at=datetime(2026, 1, 1, 9, 30, tzinfo=tokyo)))
    assert buffer.table()["started_at"].to_pylist() == [datetime(2026, 1, 1, 0, 30)]


def test_a_caller_may_reuse_its_record() -> None:
    buffer, record = row_buffer(), text_row()
    buffer.add(record)
    record["token_ids"].append(99)
    record["layers"].clear()
    record["text"] = "other"
    (back,) = buffer.table().to_pylist()
    assert (back["token_ids"], back["layers"], back["text"]) == ([5, 6, 31999], [0], "Où? 東京 🙂")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(made=st.sampled_from(sorted(MADE)), name=st.sampled_from(sorted(row())), value=anything)
def test_a_value_of_a_wrong_type_is_refused(made: str, name: str, value: Any) -> None:
    record = {**MADE[made](), name: value}
    buffer = row_buffer()
    try:
        buffer.add(record)
    except RecordError:
        # What is of the right type may still contradict the rest, but nothing is half in.
        assert len(buffer) == 0
    else:
        assert is_of_type(name, value)
        (back,) = buffer.table().select([name])[name].to_pylist()
        if name not in TIMES:
            assert back == (list(value) if isinstance(value, tuple) else value)


@given(name=st.sampled_from(sorted(row())), value=anything)
def test_the_type_alone_is_refused_with_the_columns_name(name: str, value: Any) -> None:
    if not is_of_type(name, value):
        with pytest.raises(RecordError, match=rf"^{name} is "):
            row_buffer().add({**row(), name: value})


@given(st.sets(st.sampled_from(sorted(row())), min_size=1), st.sets(st.text(max_size=6)))
def test_other_keys_are_refused(dropped: set[str], added: set[str]) -> None:
    record: Record = {**dict.fromkeys(added), **{k: v for k, v in row().items() if k not in dropped}}
    record = {k: v for k, v in record.items() if k not in dropped}
    with pytest.raises(RecordError, match="missing: " + ", ".join(sorted(dropped))):
        row_buffer().add(record)


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(RecordError, match="unknown: multiplyer"):
        row_buffer().add(row(multiplyer=1.0))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (row(row_id="AB" * 16), "32 hex digits"),
        (row(row_id="ab" * 15), "32 hex digits"),
        (row(row_id="ab" * 16 + "\n"), "32 hex digits"),
        (row(attempt=0), "attempt counts from 1"),
        (row(sample=-1), "sample from 0"),
        (row(kind="choices"), "one of 'choice', 'open_ended'"),
        (row(status="OK"), "one of 'ok', 'error'"),
        (row(letter_order=""), "one of 'original', 'swapped'"),
        (row(control="shuffle"), "one of '', 'random', 'shuffled', 'unrelated', 'system'"),
        (row(layer=3), r"layer is 3, but layers is \[0\]"),
        (row(layer=None), r"layer is None, but layers is \[0\]"),
        (row(layers=[0, 1]), r"layer is 0, but layers is \[0, 1\]"),
        (row(depth=None), "depth is null exactly where layer is"),
        (row(6, depth=0.5), "depth is null exactly where layer is"),
        (row(multiplier=0.0), "multiplier 0 is the baseline"),
        (row(6, multiplier=1.0), "multiplier 0 is the baseline"),
        (row(multiplier=None), "'add' needs a multiplier"),
        (row(multiplier=0.10000000149011612), r"wanted: 0\.1 "),
        (row(multiplier=1e60), "wanted: inf"),
        (row(6, steered_tokens=3), "a baseline has 3 steered tokens"),
        (row(6, condition_met=True), "a baseline has no condition"),
        (row(condition_met=False), "whose condition doesn't hold has 20 steered tokens"),
        (row(error="but why"), "status ok has no error"),
        (row(status="error"), "says why"),
        (row(status="error", error=""), "says why"),
        (row(steered_tokens=None), "has a steered_tokens"),
        (row(cached_tokens=-1), "has a cached_tokens"),
        (row(choices=None), "has choices"),
        (row(choice_logprobs=[-1.0]), "equally many"),
        (row(choices=[], choice_logprobs=[], choice_tokens=[]), "at least one"),
        (row(matching=2), "matching is 2, but there are 2 choices"),
        (row(matching=-1), "matching is -1"),
        (row(total_mass=math.nan), "isn't NaN"),
        (text_row(text=None), "has text"),
        (text_row(p_match=0.5), "has no p_match"),
        (text_row(completion_tokens=4), "completion_tokens is 4, but there are 3 token_ids"),
    ],
)
def test_contradictions_are_refused(record: Record, says: str) -> None:
    with pytest.raises(RecordError, match=says):
        row_buffer().add(record)


def test_several_layers_at_once_and_ablation_are_taken() -> None:
    buffer = row_buffer()
    buffer.add(row(layers=[3, 4], layer=None, depth=None))
    buffer.add(row(operation="ablate", multiplier=None))
    assert buffer.table()["layers"].to_pylist() == [[3, 4], [0]]


def test_configs_and_prompts_are_held_to_their_columns_too() -> None:
    with pytest.raises(RecordError, match="unknown: row_id"):
        config_buffer().add({**config(), "row_id": "x"})
    with pytest.raises(RecordError, match="multiplier 0 is the baseline"):
        config_buffer().add(config(multiplier=0.0))
    with pytest.raises(RecordError, match="missing: question"):
        prompt_buffer().add({k: v for k, v in prompt().items() if k != "question"})


def table(*records: Record) -> pa.Table:
    return pa.Table.from_pylist(list(records), ROWS_SCHEMA)


def test_rows_that_come_as_columns_stand_beside_others_in_shard_and_journal(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.append(row(0))
        store.append_rows(table(row(1), error_row(2)))
        store.append(row(3))
        mark = store._buffer.mark()
        store.append_rows(table(row(4)))
        store.append(row(5))
        assert set(store._buffer.table(mark)["row_id"].to_pylist()) == {row_id(4), row_id(5)}
        assert len(store._buffer) == 6
    found = stored(tmp_path)
    assert found == sorted((row_id(n), "error" if n == 2 else "ok", 1) for n in range(6))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"total_mass": math.nan}, "total_mass is NaN"),
        ({"engine": None}, "engine is null"),
        ({"letter_order": "sideways"}, "letter_order is 'sideways'"),
        ({"error": "no"}, "status error says why"),
        ({"status": "error"}, "status error says why"),
        ({"matching": None}, "has matching"),
        ({"steered_tokens": None}, "has steered_tokens"),
        ({"layers": [], "steered_tokens": 3}, "steered tokens"),
        ({"layers": [], "steered_tokens": 0, "condition_met": False}, "a baseline has no condition"),
        ({"condition_met": False}, "whose condition doesn't hold has steered tokens"),
        ({"kind": "open_ended", "text": None}, "an open-ended row with status ok has text"),
    ],
)
def test_columns_are_held_to_what_records_are_held_to(changes: Record, why: str) -> None:
    buffer = row_buffer()
    with pytest.raises(RecordError, match=why):
        buffer.add_table(table(row(0), row(1, **changes)))
    assert len(buffer) == 0
    with pytest.raises(RecordError, match="columns are others"):
        buffer.add_table(table(row(0)).drop_columns(["engine"]))
