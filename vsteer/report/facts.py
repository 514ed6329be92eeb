"""What was run, how much of it is there, and what a reader must know before any figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from vsteer.report.tables import plain_value
from vsteer.store.database import records
from vsteer.store.events import read_events
from vsteer.store.lock import holder
from vsteer.store.manifest import read_manifest

COUNTS = """
select run, count_if(status = 'ok'), count_if(status <> 'ok'), min(started_at), max(finished_at),
       list(distinct engine || ' ' || vllm_version)
from rows group by run
"""
PLANNED = "select run, sum(rows) from configs group by run"
MODELS = """
select run, model, model_commit, dtype, quantization, any_value(template), count(*)
from configs group by run, model, model_commit, dtype, quantization order by all
"""
EVALUATIONS = """
select c.run, c.evaluation, c.kind, c.system, any_value(c.system_prompt) as system_prompt,
       (select count(distinct coalesce(nullif(p.swapped_from, ''), p.item_id)) from prompts p
        where p.run = c.run and p.evaluation = c.evaluation) as items,
       (select count(distinct p.letter_order) from prompts p
        where p.run = c.run and p.evaluation = c.evaluation) as orders,
       count(*) as configs
from configs c group by c.run, c.evaluation, c.kind, c.system order by all
"""
VECTORS = """
select run, model, vector, norm, operation, positions, list(distinct layers order by layers) as layers,
       list(distinct {level} order by {level}) filter ({level} is not null) as multipliers,
       count(distinct control_index) filter (control = 'random') as random,
       count(distinct control_index) filter (control = 'shuffled') as shuffled,
       count(distinct control_index) filter (control = 'unrelated') as unrelated
from conditions where vector <> ''
group by run, model, vector, norm, operation, positions order by all
"""
# Configurations that the queries' columns can't tell apart: they are drawn on top of one another.
ALIKE = """
select count(*) from (
    select count(*) as n from conditions where control = '' and vector <> ''
    group by run, model, evaluation, system, vector, norm, positions, operation, layers, multiplier
    having n > 1
)
"""


def facts(
    database: duckdb.DuckDBPyConnection, runs: Mapping[str, Path], by_dose: bool = False
) -> list[dict[str, Any]]:
    """One entry for each run, in the order in which they were given."""
    counts = {row[0]: row[1:] for row in database.execute(COUNTS).fetchall()}
    planned = dict(database.execute(PLANNED).fetchall())
    vectors = VECTORS.format(level="level * kl" if by_dose else "multiplier")
    parts = {
        name: _by_run(database, sql)
        for name, sql in (("models", MODELS), ("evaluations", EVALUATIONS), ("vectors", vectors))
    }
    found = []
    for run, folder in runs.items():
        good, errors, began, ended, engines = counts.get(run, (0, 0, None, None, []))
        manifest, events = read_manifest(folder) or {}, read_events(folder)
        who = holder(folder)
        # the manifest has the latest plan; configs.parquet also keeps configurations of earlier ones
        wanted = int(manifest.get("rows") or planned.get(run) or 0)
        found.append(
            {
                "run": run,
                "folder": str(folder),
                "planned": wanted,
                "good": good,
                "errors": errors,
                "missing": max(0, wanted - good - errors),
                "live": who is not None,
                "began": plain_value(began),
                "ended": plain_value(ended),
                "engines": [name.strip() for name in engines],
                "sessions": max((event.get("session", 0) for event in events), default=0),
                "vsteer": manifest.get("vsteer_version", ""),
                "hardware": _hardware(manifest.get("hardware", {})),
                "models": parts["models"].get(run, []),
                "evaluations": parts["evaluations"].get(run, []),
                "vectors": [_swept(one) for one in parts["vectors"].get(run, [])],
            }
        )
    return found


def alike(database: duckdb.DuckDBPyConnection) -> int:
    (count,) = database.execute(ALIKE).fetchone() or (0,)
    return int(count)


def ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as 0-2, 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def at_once(layers: Sequence[int]) -> str:
    """4, 8, 9, 10 as 4+8-10; single layers as they are."""
    runs = [part.split("-") for part in ranges(layers).split(", ")]
    return "+".join("-".join(run) if int(run[-1]) - int(run[0]) > 1 else "+".join(run) for run in runs)


def _by_run(database: duckdb.DuckDBPyConnection, sql: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records(database, sql):
        one = {name: plain_value(value) for name, value in record.items()}
        found.setdefault(one["run"], []).append(one)
    return found


def _swept(vector: dict[str, Any]) -> dict[str, Any]:
    """The vector with its layers in few words: single ones as ranges, several at once as they are."""
    single = [layers[0] for layers in vector["layers"] if len(layers) == 1]
    together = [f"{at_once(layers)} at once" for layers in vector["layers"] if len(layers) > 1]
    return {**vector, "layers": "; ".join([*([ranges(single)] if single else []), *together])}


def _hardware(noted: Mapping[str, Any]) -> str:
    listed = noted.get("gpus")
    gpus = [
        str(gpu.get("name", gpu)) if isinstance(gpu, dict) else str(gpu)
        for gpu in (listed if isinstance(listed, list) else [])
    ]
    named = [f"{gpus.count(gpu)} x {gpu}" for gpu in dict.fromkeys(gpus)]
    cores = f"{noted['cores']} cores" if noted.get("cores") else ""
    return ", ".join([*named, *([] if not cores else [cores]), *([] if gpus or not noted else ["no GPU"])])
