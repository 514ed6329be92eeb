"""One record at a time, held against its columns: nothing unknown, missing, of a wrong type or contradictory.

A wrong record is a bug in vsteer, so it raises a `RecordError` with a traceback, not an error for the user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vsteer.operations import OPERATIONS
from vsteer.store import schema as s

ROW_ID = re.compile(r"[0-9a-f]{32}")
Record = Mapping[str, Any]
Mark = tuple[int, int]


class RecordError(ValueError):
    """A record that the store refuses: the code that made it is wrong."""


class RecordBuffer:
    """Checked records, kept until they are written. Values are copied: a caller may reuse its record."""

    def __init__(
        self,
        schema: pa.Schema,
        columns: Sequence[s.Column],
        contradiction: Callable[[Record], str | None] = lambda record: None,
    ) -> None:
        self._schema = schema
        self._names = frozenset(column.name for column in columns)
        self._values_of = itemgetter(*(column.name for column in columns))
        self._checks = [(c, bool(c.null), CHECKS[c.type], frozenset(c.values)) for c in columns]
        self._lists = [(n, KEPT[c.type]) for n, c in enumerate(columns) if c.type in KEPT]
        self._allowed = {c.name: c.values for c in columns if c.values}
        self._contradiction = contradiction
        self._rows: list[list[Any]] = []
        self._tables: list[pa.Table] = []

    def __len__(self) -> int:
        return sum(map(len, self._tables)) + len(self._rows)

    def add_table(self, table: pa.Table) -> None:
        """Take records that are columns already."""
        if problem := table_fault(table, self._schema, self._allowed):
            raise RecordError(problem)
        self._tables.append(table)

    def add(self, record: Record) -> None:
        if record.keys() != self._names:
            raise RecordError(_wrong_keys(record.keys(), self._names))
        values = list(self._values_of(record))
        for value, (column, may_be_null, good, allowed) in zip(values, self._checks, strict=True):
            if value is None:
                if not may_be_null:
                    raise RecordError(f"{column.name} is null, and it never may be")
            elif not good(value) or (allowed and value not in allowed):
                raise RecordError(_wrong_value(column, value))
        if problem := self._contradiction(record):
            raise RecordError(problem)
        for number, kept in self._lists:
            if values[number] is not None:
                values[number] = kept(values[number])
        # This is one step, so that an interrupt leaves a whole row or none.
        self._rows.append(values)

    def mark(self) -> Mark:
        """Where the records end now, for `table`."""
        return len(self._tables), len(self._rows)

    def table(self, behind: Mark = (0, 0)) -> pa.Table:
        """The records, or those behind a mark."""
        tables, rows = self._tables[behind[0] :], self._rows[behind[1] :]
        if rows or not tables:
            columns = zip(*rows, strict=True) if rows else [()] * len(self._schema)
            arrays = [
                pa.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)
            ]
            tables.append(pa.Table.from_arrays(arrays, schema=self._schema))
        return pa.concat_tables(tables)

    def clear(self) -> None:
        self._rows.clear()
        self._tables.clear()


def row_buffer() -> RecordBuffer:
    return RecordBuffer(s.ROWS_SCHEMA, s.ROWS, row_contradiction)


def config_buffer() -> RecordBuffer:
    return RecordBuffer(s.CONFIGS_SCHEMA, s.CONFIGS, axes_contradiction)


def prompt_buffer() -> RecordBuffer:
    return RecordBuffer(s.PROMPTS_SCHEMA, s.PROMPTS)


def table_fault(
    table: pa.Table, schema: pa.Schema, allowed: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> str | None:
    """What is wrong with records that are columns already."""
    if not table.schema.equals(schema):
        return "the table's columns are others"
    for field, column in zip(schema, table.columns, strict=True):
        if column.null_count and not field.nullable:
            return f"{field.name} is null, and it never may be"
        if pa.types.is_floating(field.type) and pc.any(pc.is_nan(column)).as_py():
            return f"{field.name} is NaN"
    for name, values in allowed.items():
        if strange := set(pc.unique(table[name]).to_pylist()) - set(values):
            return f"{name} is {min(strange)!r}, and one of {', '.join(map(repr, values))} is wanted"
    if "status" not in schema.names:
        return None
    good = pc.equal(table["status"], "ok")
    if not pc.all(pc.equal(good, pc.is_null(table["error"]))).as_py():
        return "a row with status error says why, and no other"
    answered = table.filter(good)
    choices, texts = (answered.filter(pc.equal(answered["kind"], kind)) for kind in s.KINDS)
    for rows, what, names in (
        (choices, "a choice", CHOICE_COLUMNS),
        (texts, "an open-ended", TEXT_COLUMNS),
        (answered, "a", COUNTS),
    ):
        if lacking := [name for name in names if rows[name].null_count]:
            return f"{what} row with status ok has {lacking[0]}"
    unsteered = answered.filter(pc.equal(pc.list_value_length(answered["layers"]), 0))
    if pc.any(pc.not_equal(unsteered["steered_tokens"], 0)).as_py():
        return "a baseline has steered tokens"
    if unsteered["condition_met"].null_count < len(unsteered):
        return "a baseline has no condition"
    unmet = answered.filter(pc.invert(pc.fill_null(answered["condition_met"], True)))
    if pc.any(pc.not_equal(unmet["steered_tokens"], 0)).as_py():
        return "a row whose condition doesn't hold has steered tokens"
    return None


def _good_string(value: object) -> bool:
    if type(value) is not str:
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _good_int(value: object) -> bool:
    return type(value) is int and -(2**31) <= value < 2**31


def _good_long(value: object) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _good_float(value: object) -> bool:
    return type(value) is float and value == value


def _good_time(value: object) -> bool:
    return type(value) is datetime and value.tzinfo is not None


def _good_ints(value: object) -> bool:
    if type(value) is not list and type(value) is not tuple:
        return False
    if set(map(type, value)) - {int}:
        return False
    return not value or (min(value) >= -(2**31) and max(value) < 2**31)


def _good_list(good: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: (type(value) is list or type(value) is tuple) and all(map(good, value))


CHECKS: dict[pa.DataType, Callable[[object], bool]] = {
    s.STRING: _good_string,
    s.INT: _good_int,
    s.LONG: _good_long,
    s.FLOAT: _good_float,
    s.BOOL: lambda value: type(value) is bool,
    s.TIME: _good_time,
    s.INTS: _good_ints,
    s.STRINGS: _good_list(_good_string),
    s.FLOATS: _good_list(_good_float),
}

# Lists are copied, so that a caller may reuse its own; ints as Arrow takes them, which is also smaller.
KEPT: dict[pa.DataType, Callable[[Any], Any]] = {
    s.INTS: lambda value: np.array(value, np.int32),
    s.STRINGS: tuple,
    s.FLOATS: tuple,
}

WANTED = {
    s.STRING: "a str that UTF-8 can hold",
    s.INT: "an int of 32 bits",
    s.LONG: "an int of 64 bits",
    s.FLOAT: "a float that isn't NaN",
    s.BOOL: "true or false",
    s.TIME: "a datetime with a time zone",
    s.INTS: "a list of ints of 32 bits",
    s.STRINGS: "a list of str that UTF-8 can hold",
    s.FLOATS: "a list of floats without NaN",
}


def _wrong_keys(keys: Any, names: frozenset[str]) -> str:
    problems = []
    if unknown := sorted(map(str, keys - names)):
        problems.append(f"unknown: {', '.join(unknown)}")
    if missing := sorted(names - keys):
        problems.append(f"missing: {', '.join(missing)}")
    return f"the record's keys are not its columns; {'; '.join(problems)}"


def _wrong_value(column: s.Column, value: object) -> str:
    wanted = f"one of {', '.join(map(repr, column.values))}" if column.values else WANTED[column.type]
    return f"{column.name} is {repr(value)[:80]} ({type(value).__name__}), and {wanted} is wanted"


def axes_contradiction(record: Record) -> str | None:
    """What contradicts itself in layers and multiplier; a baseline has multiplier 0 and no layer."""
    layers, layer, multiplier = record["layers"], record["layer"], record["multiplier"]
    if layer != (layers[0] if len(layers) == 1 else None):
        return f"layer is {layer}, but layers is {list(layers)}"
    if (layer is None) != (record["depth"] is None):
        return "depth is null exactly where layer is"
    if multiplier is None:
        # that of a dose is found later, or never
        if record["operation"] == "":
            return "a baseline has the multiplier 0"
    elif (multiplier == 0) == bool(layers):
        return f"multiplier 0 is the baseline and has no layers; here {multiplier} goes with {list(layers)}"
    elif multiplier != s.plain_multiplier(multiplier):
        return (
            f"multiplier is {multiplier!r}, and the shortest number of the same float32 is wanted: "
            f"{s.plain_multiplier(multiplier)!r} (schema.plain_multiplier)"
        )
    return None


COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "steered_tokens")


def row_contradiction(record: Record) -> str | None:
    if not ROW_ID.fullmatch(record["row_id"]):
        return f"row_id is {record['row_id']!r}, and 32 hex digits are wanted"
    if record["attempt"] < 1 or record["sample"] < 0:
        return "attempt counts from 1 and sample from 0"
    if problem := axes_contradiction(record):
        return problem
    if record["status"] == "error":
        return None if record["error"] else "a row with status error says why"
    if record["error"] is not None:
        return "a row with status ok has no error"
    for name in COUNTS:
        if record[name] is None or record[name] < 0:
            return f"a row with status ok has a {name} of 0 or more"
    operation = OPERATIONS.get(record["operation"])
    if record["multiplier"] is None and operation and operation.has_multiplier:
        return f"the operation {record['operation']!r} needs a multiplier"
    if not record["layers"] and record["steered_tokens"]:
        return f"a baseline has {record['steered_tokens']} steered tokens"
    if not record["layers"] and record["condition_met"] is not None:
        return "a baseline has no condition"
    if record["condition_met"] is False and record["steered_tokens"]:
        return f"a row whose condition doesn't hold has {record['steered_tokens']} steered tokens"
    return _choice_contradiction(record) if record["kind"] == "choice" else _text_contradiction(record)


CHOICE_COLUMNS = ("choices", "choice_logprobs", "choice_tokens", "matching", "total_mass")
TEXT_COLUMNS = ("text", "token_ids", "finish_reason")


def _choice_contradiction(record: Record) -> str | None:
    for name in CHOICE_COLUMNS:
        if record[name] is None:
            return f"a choice row with status ok has {name}"
    count = len(record["choices"])
    if not count or len(record["choice_logprobs"]) != count or len(record["choice_tokens"]) != count:
        return "choices, choice_logprobs and choice_tokens are equally many, and at least one"
    if not 0 <= record["matching"] < count:
        return f"matching is {record['matching']}, but there are {count} choices"
    return None


def _text_contradiction(record: Record) -> str | None:
    for name in TEXT_COLUMNS:
        if record[name] is None:
            return f"an open-ended row with status ok has {name}"
    for name in (*CHOICE_COLUMNS, "p_match", "logit_diff"):
        if record[name] is not None:
            return f"an open-ended row has no {name}"
    count = len(record["token_ids"])
    if count != record["completion_tokens"]:
        return f"completion_tokens is {record['completion_tokens']}, but there are {count} token_ids"
    return None
