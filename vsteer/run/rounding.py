"""What rounding does to a run's effects: some of them are computed again in float32, by Hugging Face.

It is the whole error of 16 bits, and not only what differs from batch to batch. An effect that is smaller
than it is not told apart from rounding.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vsteer.errors import ModelError, SteeringFault
from vsteer.host.machine import this_machine
from vsteer.models.hugging_face import load_config
from vsteer.plan.plan import Plan
from vsteer.plan.rows import Row
from vsteer.protocol import Engine, Vectors
from vsteer.results.views import connect_runs
from vsteer.run.progress import RunProgress
from vsteer.store.rounding import read_rounding, write_rounding

EFFECTS, ENOUGH = 32, 8
SECONDS = 90.0
# What float32 weights take of a file of 16-bit ones, with room for the pass.
MEMORY_FACTOR = 2.5

# Chosen by their hash: the same ones for every start, from all configurations and prompts alike. The few
# baselines are found first: joined by prompts alone, all rows would meet all rows of their prompt.
CHOSEN = """
with b as materialized (
    select row_id, evaluation, config_id, prompt_id, logit_diff from rows
    where kind = 'choice' and vector = '' and status = 'ok' and isfinite(logit_diff)
)
select r.row_id, b.row_id as baseline_row_id, r.evaluation, r.config_id, r.prompt_id,
       r.logit_diff - b.logit_diff as effect
from rows r
join conditions c using (evaluation, config_id)
join b on b.evaluation = r.evaluation and b.config_id = c.baseline_id and b.prompt_id = r.prompt_id
where c.model = $model and r.kind = 'choice' and r.vector <> '' and r.status = 'ok'
      and isfinite(r.logit_diff) and r.condition_met is distinct from false
order by r.row_id limit $count
"""


def measure_rounding(
    plan: Plan, folder: Path, vectors: Vectors, progress: RunProgress, stopping: Callable[[], bool]
) -> str | None:
    """Write rounding.parquet. What to say of it; None where there is nothing to measure, or not this time."""
    if plan.facts.dtype == "float32" or any(
        record["model"] == plan.facts.name for record in read_rounding(folder)
    ):
        return None
    chosen = _chosen(plan, folder)
    if len(chosen) < ENOUGH:
        return None
    try:
        reference = _reference(plan)
    except ModelError as reason:
        return f"what {plan.facts.dtype} rounds isn't known: {reason.message}"
    progress.counting(
        f"computing effects again in float32, to see what {plan.facts.dtype} rounds", len(chosen)
    )
    reference.load(vectors, plan.steerings())
    found: list[dict[str, Any]] = []
    began = time.monotonic()
    prompts = {prompt_id for _, _, _, _, prompt_id, _ in chosen}
    rows = {
        row.row_id: row
        for prompt in plan.prompts()
        if prompt.rendered.prompt_id in prompts
        for row in prompt.rows(range(prompt.count))
    }
    for steered_id, unsteered_id, evaluation, config_id, prompt_id, effect in chosen:
        if stopping() or (time.monotonic() - began > SECONDS and len(found) >= ENOUGH):
            break
        steered, unsteered = (_logit_diff(rows[name], reference) for name in (steered_id, unsteered_id))
        found.append(
            {
                "model": plan.facts.name,
                "dtype": plan.facts.dtype,
                "evaluation": evaluation,
                "config_id": config_id,
                "prompt_id": prompt_id,
                "effect": effect,
                "effect_float32": steered - unsteered,
            }
        )
        progress.step()
    if len(found) < ENOUGH:
        return None
    write_rounding(folder, found)
    errors = [record["effect"] - record["effect_float32"] for record in found]
    size = math.sqrt(sum(error**2 for error in errors) / len(errors))
    mean = sum(errors) / len(errors)
    return (
        f"{plan.facts.dtype} moves an effect of one question by {size:.3f} (root mean square) and "
        f"{mean:+.3f} (mean): {len(found)} effects were computed again in float32"
    )


def _chosen(plan: Plan, folder: Path) -> list[tuple[str, str, str, str, str, float]]:
    with contextlib.closing(connect_runs([folder])) as database:
        database.execute(CHOSEN, {"model": plan.facts.name, "count": EFFECTS})
        chosen: list[tuple[str, str, str, str, str, float]] = database.fetchall()
        return chosen


def _reference(plan: Plan) -> Engine:
    """The same model in float32, on this machine's CPU. Raises ModelError where it can't be had."""
    import torch

    from vsteer.engine.proof.reference import ReferenceEngine

    folder = plan.facts.folder
    assert folder is not None
    # vLLM leaves the process that starts it with one thread
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if plan.facts.quantization or getattr(load_config(folder), "quantization_config", None):
        raise ModelError("a quantised checkpoint has no float32 weights", "")
    needed = MEMORY_FACTOR * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    free = this_machine().available
    if needed > free:
        raise ModelError(
            f"float32 would take {needed / 2**30:.0f} GiB of memory, and {free / 2**30:.0f} are free", ""
        )
    return ReferenceEngine(str(folder))


def _logit_diff(row: Row, reference: Engine) -> float:
    record = row.record(list(reference.run(row.requests())))
    if record["logit_diff"] is None:
        raise SteeringFault(f"the row {row.row_id} has no score in float32: {record['error']}")
    return float(record["logit_diff"])
