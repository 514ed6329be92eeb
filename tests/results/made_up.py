"""Runs whose effects are known, as a test says each row's logit difference; written through the store."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from tests.store import makers
from vsteer.analysis.differences import differences_over_runs
from vsteer.analysis.over_runs import scaling_over_runs
from vsteer.results.queries import DIFFERENCES, FITS, parameters_sql, query
from vsteer.results.views import connect_runs
from vsteer.store.store import open_store
from vsteer.vectors.files import save
from vsteer.vectors.vector import Origin, SteeringVector

LAYERS = 8


@dataclass(frozen=True)
class Steered:
    """A configuration; without a vector the unsteered one."""

    vector: str = ""
    layer: int | None = None
    multiplier: float = 0.0
    control: str = ""
    index: int | None = None
    norm: str = "raw"
    system: str = ""
    evaluation: str = "choice:toy"
    dtype: str = "float32"
    sha256: str = "ab" * 32
    kind: str = "choice"

    def config(self, model: str) -> dict[str, Any]:
        on = self.vector != ""
        parts = [getattr(self, name) for name in self.__dataclass_fields__ if name != "evaluation"]
        return {
            "config_id": hashlib.md5(repr((model, parts)).encode()).hexdigest(),
            "evaluation": self.evaluation,
            "kind": self.kind,
            "model": model,
            "vector": self.vector,
            "vector_sha256": self.sha256 if on else "",
            "norm": self.norm if on else "",
            "control": self.control,
            "control_index": self.index,
            "layers": [self.layer] if self.layer is not None else [],
            "layer": self.layer,
            "depth": None if self.layer is None else (self.layer + 1) / LAYERS,
            "operation": "add" if on else "",
            "multiplier": self.multiplier,
            "positions": "all" if on else "",
            "system": self.system,
        }


@dataclass(frozen=True)
class Cell:
    """Where a row stands: what a test's function gives a logit difference to."""

    steered: Steered
    item: int
    order: str


# None: the row failed. A mapping: whole columns.
Says = Callable[[Cell], float | Mapping[str, Any] | None]


def make_run(
    folder: Path,
    steered: Iterable[Steered],
    says: Says,
    *,
    items: int = 4,
    orders: Sequence[str] = ("original",),
    model: str = "toy-7b",
    compact: bool = True,
    left_out: Callable[[Cell], bool] = lambda cell: False,
) -> Path:
    """A run of the configurations, each with the unsteered one that is asked alike."""
    wanted = dict.fromkeys(steered)
    for one in list(wanted):
        wanted.setdefault(unsteered(one))
    asked = {(one.evaluation, one.system, one.kind) for one in wanted}
    configs: list[makers.Record] = []
    rows: list[makers.Record] = []
    for one in wanted:
        config = one.config(model)
        count = items * len(orders)
        configs.append(makers.config(**config, dtype=one.dtype, system_prompt=one.system, rows=count))
        for item in range(items):
            for order in orders:
                cell = Cell(one, item, order)
                if not left_out(cell):
                    rows.append(_row(config, cell, len(rows), says(cell)))
    with open_store(folder) as store:
        prompts = [
            makers.prompt(**_prompt(evaluation, system, kind, item, order))
            for evaluation, system, kind in sorted(asked)
            for item in range(items)
            for order in orders
        ]
        store.write_plan({"name": "made up"}, configs, prompts, sum(config["rows"] for config in configs))
        for row in rows:
            store.append(row)
        if compact:
            store.compact()
    return folder


def unsteered(one: Steered) -> Steered:
    control = one.control if one.control == "system" else ""
    return Steered(
        control=control, system=one.system, evaluation=one.evaluation, dtype=one.dtype, kind=one.kind
    )


def _ids(item: int, order: str) -> dict[str, str]:
    return {"item_id": f"item-{item}" + ("-swapped" if order == "swapped" else ""), "letter_order": order}


def _prompt(evaluation: str, system: str, kind: str, item: int, order: str) -> dict[str, Any]:
    return {
        "prompt_id": f"{evaluation}-{system}-{item}-{order}",
        **_ids(item, order),
        "swapped_from": f"item-{item}" if order == "swapped" else "",
        "evaluation": evaluation,
        "kind": kind,
        "system": system,
        "question": f"question {item}",
        "matching": int(order == "swapped") if kind == "choice" else None,
        "choices": ["A", "B"] if kind == "choice" else None,
    }


def _row(config: dict[str, Any], cell: Cell, number: int, given: Any) -> dict[str, Any]:
    one = cell.steered
    prompt = _prompt(one.evaluation, one.system, one.kind, cell.item, cell.order)
    changes = {
        **config,
        **_ids(cell.item, cell.order),
        "prompt_id": prompt["prompt_id"],
        "row_id": hashlib.md5(repr((config["config_id"], prompt["prompt_id"])).encode()).hexdigest(),
        "matching": prompt["matching"],
        "choices": prompt["choices"],
        "steered_tokens": 20 if one.vector else 0,
        "started_at": makers.START + timedelta(seconds=number),
        "finished_at": makers.START + timedelta(seconds=number + 1),
        "vector_file_sha256": "cd" * 32 if one.vector else "",
    }
    if given is None:
        return makers.error_row(number, **{k: v for k, v in changes.items() if k not in _NOT_OF_ERRORS})
    if one.kind == "open_ended":
        return makers.text_row(number, **{**makers.NOTHING_ASKED, **changes, **makers.NOTHING_ASKED})
    columns = dict(given) if isinstance(given, Mapping) else {"logit_diff": given}
    logit = columns["logit_diff"]
    columns.setdefault("p_match", 1 / (1 + math.exp(-logit)))
    return makers.row(
        number, **{**changes, "text": None, "token_ids": None, "finish_reason": None, **columns}
    )


_NOT_OF_ERRORS = {"matching", "choices", "steered_tokens"}


def sweep(vector: str, layers: Iterable[int], multipliers: Iterable[float], **more: Any) -> list[Steered]:
    return [Steered(vector, n, m, **more) for n in layers for m in multipliers]


def controls(vectors: Iterable[Steered], count: int, control: str = "random") -> list[Steered]:
    """So many control vectors, each stored as a vector of its own."""
    return [
        replace(one, control=control, index=n, sha256=hashlib.sha256(f"{control} {n}".encode()).hexdigest())
        for one in vectors
        for n in range(count)
    ]


def write_vector(folder: Path, name: str, lengths: Sequence[float], stream: float, **origin: Any) -> str:
    """A vector's file in a run, with these lengths by layer; its content's hash."""
    from vsteer.vectors.derive import content_sha256

    directions = {n: np.array([0.0, each, 0.0], np.float32) for n, each in enumerate(lengths)}
    streams = dict.fromkeys(directions, stream) if stream else {}
    vector = SteeringVector(name, directions, streams, Origin(**{"model": "toy-7b", **origin}))
    (folder / "vectors").mkdir(parents=True, exist_ok=True)
    save(vector, folder / "vectors" / f"{name}.safetensors")
    return content_sha256(vector)


def ask(name: str, *folders: Path, **parameters: str) -> list[dict[str, Any]]:
    """What a query answers, a dictionary a row."""
    with connect_runs(folders) as database:
        for statement in parameters_sql(parameters):
            database.execute(statement)
        for need, make in ((FITS, scaling_over_runs), (DIFFERENCES, differences_over_runs)):
            if need in query(name).needs and (made := make(database)):
                database.execute(made)
        result = database.execute(query(name).sql)
        header = [column[0] for column in result.description]
        return [dict(zip(header, row, strict=True)) for row in result.fetchall()]
