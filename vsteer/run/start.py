"""One start of a run: a grid, the rows that stand already, one model after another, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vsteer.errors import EngineError, VsteerError
from vsteer.grid.spec import Grid, as_grid
from vsteer.plan.left_out import described
from vsteer.plan.plan import Plan
from vsteer.plan.rates import keep, one_rate
from vsteer.run import kl_doses
from vsteer.run.folder import changes, put_aside, run_folder, run_plans, vector_hashes, write_plan
from vsteer.run.interrupt import Interrupt
from vsteer.run.loading import Load, fetch_models, load_vllm
from vsteer.run.loop import Counts
from vsteer.run.model_run import ModelRun, RunContext
from vsteer.run.progress import RunProgress
from vsteer.run.vectors import StoredVectors
from vsteer.store.planned import Planned, Standing
from vsteer.store.shards import ROWS_FOLDER, SET_ASIDE, unplanned_name
from vsteer.store.store import Store, open_store
from vsteer.vectors import run_norms

# Whoever presses Ctrl-C waits for so many rows to be sorted, a few seconds, but not for more.
SOON_IN_ORDER = 1_000_000

COMPLETE, INCOMPLETE, INTERRUPTED = 0, 3, 130

# Works out what is derived from a run's rows, and returns what to warn of.
Derive = Callable[[Path], str | None]


@dataclass(frozen=True)
class Outcome:
    """How a start ended."""

    folder: Path
    planned: int
    good: int
    errors: int
    exit_code: int
    fault: VsteerError | None = None  # why a model's engine was given up


def run_grid(
    grid: Grid | Mapping[str, Any] | str | Path,
    *,
    fresh: bool = False,
    retry_errors: bool = False,
    derive: Derive | None = None,
    load: Load | None = None,
    console: Console | None = None,
    ray: str | None = None,
) -> Outcome:
    """Run a grid, or go on with it. `derive` makes the statistics at its end; `load` may replace vLLM.

    `ray` is the address of the Ray cluster that several engines are started on.
    """
    grid = as_grid(grid)
    fetch_models(grid)
    folder = run_folder(grid)
    plans = run_plans(grid, fresh)
    if fresh and folder.exists():
        put_aside(folder)
    planned = Planned(part for plan in plans for part in plan.parts())
    with open_store(folder) as store:
        before = store.manifest
        kl_doses.set_damaged_aside(folder)
        plans = kl_doses.with_known(plans, folder, retry_errors)
        unplanned = taken_back = 0
        if store.session > 1:
            unplanned = store.put_aside_unplanned(planned)
            taken_back = store.take_back(planned)
        write_plan(store, plans, {}, vector_hashes(folder / ROWS_FOLDER) if taken_back else {})
        standing = store.standing(planned)
        kept = standing.good_count if retry_errors else standing.count
        with RunProgress(len(planned), kept, console) as progress:
            progress.phase(
                f"{grid.name}: {len(planned):,} rows, {standing.count:,} of them stand in {folder}"
            )
            for line in dict.fromkeys(line for plan in plans for line in _left_out(plan)):
                progress.say(line)
            if before is not None and (changed := changes(before.get("grid"), grid.model_dump(mode="json"))):
                progress.say(f"the grid changed since the last start: {', '.join(changed)}")
            if unplanned:
                progress.say(
                    f"{unplanned:,} earlier rows are no longer in the plan; they were moved to "
                    f"{folder / SET_ASIDE / unplanned_name(store.session)}"
                )
            if taken_back:
                progress.say(f"{taken_back:,} rows are planned again and were taken back from set-aside/")
            for file in store.set_aside:
                progress.warn(f"{file.name} could not be read and is in set-aside/: {file.why}")

            def on_event(event: str, **fields: Any) -> None:
                store.event(event, **fields)
                if event == "replica_died":
                    again = "is started again" if fields["restart"] else "is given up"
                    progress.say(
                        f"engine {fields['replica']} died on {fields['host'] or 'no node'} and {again}: "
                        f"{fields['error']}"
                    )

            by_vllm = load is None
            load = load or partial(load_vllm, on_event=on_event, ray=ray)
            interrupted, fault = _run_models(plans, planned, store, progress, standing, retry_errors, load)
            standing = store.standing(planned)
            missing = len(planned) - standing.good_count
            store.event("stop", missing=missing, interrupted=interrupted)
            if derive and not interrupted:
                progress.phase("working out the statistics")
                began = time.monotonic()
                # A start that computes no row loads no vectors, and leaves a damaged table of them as it is.
                if fault_of_norms := run_norms.bring_up_to_date(folder):
                    progress.warn(fault_of_norms)
                if warning := derive(folder):
                    progress.warn(warning.removeprefix("warning: "))
                    store.event("no_statistics", error=warning)
                elif by_vllm and standing.count > kept:
                    rate = one_rate(standing.count, time.monotonic() - began)
                    for plan in plans:
                        keep(plan, {"statistics_rows": rate})
    code = INTERRUPTED if interrupted else INCOMPLETE if missing else COMPLETE
    return Outcome(folder, len(planned), len(planned) - missing, len(standing.failed), code, fault)


def _left_out(plan: Plan) -> Iterator[str]:
    """What a plan has no row for though its grid or its data has it, line by line."""
    yield from described(plan.left_out)
    yield from (f"note: {note}" for note in plan.notes)


def _run_models(
    plans: tuple[Plan, ...],
    planned: Planned,
    store: Store,
    progress: RunProgress,
    standing: Standing,
    retry_errors: bool,
    load: Load,
) -> tuple[bool, VsteerError | None]:
    """Whether it was interrupted, and why an engine was given up, if one was."""
    fault: VsteerError | None = None
    hashes: dict[tuple[int, str], str] = {}

    now = list(plans)

    def on_vectors(plan: Plan, stored: StoredVectors) -> None:
        now[plan.model] = plan  # with the multipliers of its doses
        hashes.update({(plan.model, key): sha256 for key, sha256 in stored.content_sha256.items()})
        write_plan(store, now, hashes)

    with Interrupt(progress.say) as interrupt:
        context = RunContext(
            store, progress, interrupt, Counts(), planned, standing, retry_errors, on_vectors, load
        )
        first = 0
        try:
            for plan in plans:
                if interrupt.stopping:
                    break
                try:
                    ModelRun(plan, first, context).run()
                except EngineError as error:
                    # The rows that are done stay, and the next model is tried.
                    fault = error
                    progress.say(f"error: {plan.facts.name}: {error.message}\nhint: {error.hint}")
                first += plan.row_count
        except KeyboardInterrupt:
            interrupt.stopping = True
        store.flush()
        progress.phase("putting the rows in order")
        store.compact(most=SOON_IN_ORDER if interrupt.stopping else None)
    return interrupt.stopping, fault
