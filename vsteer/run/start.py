"""One start of a run: a grid file, its engines one model after another, and how it ended.

An engine that dies or hangs is started again, three times for a model; what was written stays.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from vsteer import models
from vsteer.errors import EngineError, StoreError, VsteerError
from vsteer.evaluations.open_ended import OpenEndedSpec
from vsteer.grid.spec import EngineSpec, Grid, read_grid
from vsteer.packages import vllm_version
from vsteer.plan.budget import budget
from vsteer.plan.plan import Plan, make_plans
from vsteer.plan.rates import Meter, keep
from vsteer.protocol import Engine
from vsteer.run.folder import changes, put_aside, run_day, run_folder, vector_hashes, write_plan
from vsteer.run.loading import engine_options, fetched
from vsteer.run.loop import Counts, Provenance, rows_to_do, run_rows
from vsteer.run.progress import RunProgress, duration
from vsteer.run.vectors import MadeVectors, RunVectors, member_total
from vsteer.scoring.perplexity import CoherenceFile
from vsteer.store.ids import RowIds
from vsteer.store.shards import ROWS_FOLDER, Done
from vsteer.store.store import Store, open_store
from vsteer.vectors.run_norms import write_vector_norms

COMPLETE, INCOMPLETE, INTERRUPTED = 0, 3, 130
RESTARTS = 3
STALL_SECONDS = 600.0
# Tokens of a step that can be captured, where a vector is to be extracted.
CAPTURES = 64


@dataclass(frozen=True)
class Outcome:
    """How a start ended."""

    folder: Path
    planned: int
    good: int
    errors: int
    exit_code: int


# a plan, how its engine runs, and whether vectors are to be extracted through it
Load = Callable[[Plan, EngineSpec, bool], Engine]


class Interrupt:
    """The first Ctrl-C (or SIGTERM) asks to stop, the second one stops."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked = False
        self._say = say
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._say("stopping: what is under way is finished and written (again to stop at once)")


def run_grid(
    path: Path, *, fresh: bool = False, retry_errors: bool = False, load: Load | None = None
) -> Outcome:
    """Run a grid, or go on with it. `load` stands in for vLLM in tests."""
    grid = read_grid(path)
    fetch_models(grid)
    folder = run_folder(grid)
    today = date.today() if fresh else run_day(folder)
    plans = make_plans(grid, today)
    if fresh and folder.exists():
        put_aside(folder)
    planned = sum(plan.row_count for plan in plans)
    with open_store(folder) as store:
        before = store.manifest
        unplanned = taken_back = 0
        if before is not None:
            ids = RowIds.of(row.row_id for plan in plans for row in plan.rows())
            unplanned = store.put_aside_unplanned(ids)
            taken_back = store.take_back(ids)
        write_plan(store, plans, {}, vector_hashes(folder / ROWS_FOLDER) if taken_back else {})
        done = store.done()
        with RunProgress(planned, done.standing if not retry_errors else len(done.good)) as progress:
            progress.phase(f"{grid.name}: {planned:,} rows, {done.standing:,} of them stand in {folder}")
            if before is not None and (changed := changes(before.get("grid"), grid.model_dump(mode="json"))):
                progress.say(f"the grid changed since the last start: {', '.join(changed)}")
            if unplanned:
                progress.say(
                    f"{unplanned:,} rows of before are in the plan no more; they were moved to "
                    f"{folder}/set-aside/unplanned-{store.session}.parquet"
                )
            if taken_back:
                progress.say(f"{taken_back:,} rows are planned again and were taken back from set-aside/")
            for file in store.set_aside:
                progress.say(f"warning: {file.name} could not be read and is in set-aside/: {file.why}")

            def tell(event: str, **fields: Any) -> None:
                store.event(event, **fields)
                if event == "replica_died":
                    progress.say(f"replica {fields['replica']} died: {fields['error']}")

            retry = done if retry_errors else None
            return _run(plans, store, progress, retry, planned, load or partial(load_vllm, tell=tell))


def _run(
    plans: tuple[Plan, ...],
    store: Store,
    progress: RunProgress,
    retry: Done | None,
    planned: int,
    load: Load,
) -> Outcome:
    why: VsteerError | None = None
    hashes: dict[tuple[int, str], str] = {}

    def made(plan: Plan, supply: MadeVectors) -> None:
        hashes.update({(plan.model, key): sha256 for key, sha256 in supply.content_sha256.items()})
        write_plan(store, plans, hashes)

    with Interrupt(progress.say) as interrupt:
        start = Start(store, progress, interrupt, Counts(), retry, made, load)
        try:
            for plan in plans:
                if interrupt.asked:
                    break
                try:
                    ModelRun(plan, start).run()
                except EngineError as error:
                    # what is done is kept, and the next model is tried
                    why = error
                    progress.say(f"error: {plan.facts.name}: {why.message}\nhint: {why.hint}")
        except KeyboardInterrupt:
            interrupt.asked = True
        store.flush()
        progress.phase("putting the rows in order")
        store.compact()
    done = store.done()
    missing = sum(1 for plan in plans for _ in rows_to_do(plan, done, retry=done))
    store.event("stop", missing=missing, interrupted=interrupt.asked)
    if not interrupt.asked:
        # scipy takes a second to import
        from vsteer.analysis.statistics import bring_up_to_date

        progress.phase("working out the statistics")
        if fault := bring_up_to_date(store.folder):
            progress.say(fault)
            store.event("no_statistics", error=fault)
    code = INTERRUPTED if interrupt.asked else INCOMPLETE if missing else COMPLETE
    return Outcome(store.folder, planned, planned - missing, len(done.errors), code)


@dataclass(frozen=True)
class Start:
    """What the models of one start share."""

    store: Store
    progress: RunProgress
    interrupt: Interrupt
    counts: Counts
    # what stood when it began, where failed rows are to be tried again; once, however often an engine dies
    retry: Done | None
    # is told of a model's vectors once they are there
    made: Callable[[Plan, MadeVectors], None]
    load: Load


class ModelRun:
    """One model's part of a run: its engine, its vectors, its rows."""

    def __init__(self, plan: Plan, start: Start) -> None:
        self.plan = plan
        self.store, self.progress = start.store, start.progress
        self.start = start
        self.supplier = RunVectors(plan, start.store.folder)
        self._hung = False
        self.spec = plan.grid.engine_for(plan.grid.model[plan.model])

    def run(self) -> None:
        if next(self._to_do(), None) is None and not self._texts_open():
            return
        self.supplier.check()
        spec, restarts = self.spec, 0
        while not self.start.interrupt.asked:
            engine: Engine | None = None
            try:
                engine = self._load(spec)
                with _watched(engine, self._stalled):
                    self._with_engine(engine)
                return
            except EngineError as error:
                self.store.flush()
                restarts += 1
                codes = engine.exit_codes() if engine else []
                self.store.event("engine_died", error=error.message, exit_codes=codes, restart=restarts)
                if restarts > RESTARTS:
                    raise
                # what ends an engine without a word of ours is mostly too little memory
                if self._hung:
                    self._hung = False
                else:
                    spec = spec.model_copy(update={"max_num_seqs": max(1, spec.max_num_seqs // 2)})
                self.progress.phase(
                    f"the engine died ({error.message}); starting it with {spec.max_num_seqs} sequences, "
                    f"{restarts} of {RESTARTS}"
                )
            finally:
                if engine:
                    engine.close()

    def _load(self, spec: EngineSpec) -> Engine:
        name = self.plan.facts.name
        self.progress.phase(
            f"{name}: loading it into vLLM"
            + (f" {spec.replicas} times" if spec.replicas > 1 else "")
            + ("" if spec.enforce_eager else " and compiling")
            + ", and proving that it steers (this takes a while)"
        )
        began = time.monotonic()
        engine = self.start.load(self.plan, spec, bool(self.supplier.to_extract))
        seconds = time.monotonic() - began
        self.progress.phase(f"{name} is ready after {duration(seconds)}")
        self.store.event(
            "engine_start", model=name, seconds=round(seconds, 1), max_num_seqs=spec.max_num_seqs
        )
        return engine

    def _with_engine(self, engine: Engine) -> None:
        for source in self.supplier.to_extract:
            self.progress.counting(f"extracting the vector {source.name}", member_total(source))
            warning = self.supplier.extract(engine, source, self.progress.step)
            self.store.event("extract", vector=source.name, warning=warning)
            if warning:
                self.progress.say(
                    f"warning: {warning}; better: vsteer vectors extract --dtype float32, then `file:`"
                )
            if self.start.interrupt.asked:
                return
        self.progress.phase(f"{len(self.plan.vectors):,} vectors, controls included")
        supply = self.supplier.supply()
        self.start.made(self.plan, supply)
        write_vector_norms(self.store.folder)
        engine.load(supply.vectors, self.plan.steerings())
        self.progress.rows_begin(self.start.counts)
        meter = Meter()
        run_rows(
            engine,
            self._to_do(),
            self.store,
            Provenance(
                engine.info.kind,
                vllm_version() if engine.info.kind == "vllm" else "",
                self.store.session,
                supply,
            ),
            self.start.counts,
            self.progress.rows,
            lambda: self.start.interrupt.asked,
            meter.add,
        )
        if engine.info.kind == "vllm":
            keep(self.plan, meter)
        self._coherence(engine)

    def _coherence(self, engine: Engine) -> None:
        """The perplexity of each text, while the model is there; later too, so that no run fails for it."""
        if not self._coherent or self.start.interrupt.asked:
            return
        self.store.flush()
        try:
            with self._coherence_file() as file:
                left = file.result.open
                if not left:
                    return
                self.progress.counting("perplexity of the texts under the unsteered model", left)
                found = file.score(engine, lambda _: self.progress.step(), lambda: self.start.interrupt.asked)
        except StoreError as error:
            self.progress.say(
                f"warning: no perplexities: {error.message}; later: vsteer score --scorer perplexity"
            )
        else:
            self.store.event("coherence", scored=found.scored, failed=found.failed, open=found.open)

    @property
    def _coherent(self) -> list[str]:
        """The evaluations whose texts want a perplexity."""
        return [
            name
            for name, _, place in self.plan.grid.named_evaluations()
            if isinstance(spec := self.plan.grid.evaluations[place], OpenEndedSpec) and spec.coherence
        ]

    def _coherence_file(self) -> CoherenceFile:
        facts = self.plan.facts
        return CoherenceFile(self.store.folder, facts.name, facts.identity(), self._coherent)

    def _texts_open(self) -> bool:
        if not self._coherent:
            return False
        try:
            with self._coherence_file() as file:
                return file.result.open > 0
        except StoreError:
            return False

    def _to_do(self) -> Iterator[Any]:
        return rows_to_do(self.plan, self.store.done(), self.start.retry)

    def _stalled(self, engine: Engine) -> None:
        """Say what hangs, and end the engine: the step under way fails, and it is started again."""
        under_way = engine.under_way()
        self._hung = True
        engine.kill()
        self.progress.say(
            f"no row finished for {duration(STALL_SECONDS)}; {len(under_way)} requests are under way, first "
            f"{', '.join(under_way[:3])}: the engine was ended"
        )
        self.store.event("stall", under_way=under_way[:100], count=len(under_way))


@contextlib.contextmanager
def _watched(engine: Engine, stalled: Callable[[Engine], None]) -> Iterator[None]:
    """Call `stalled` once when nothing moves for a long time."""
    over = threading.Event()

    def watch() -> None:
        seen, since = engine.steps, time.monotonic()
        while not over.wait(5):
            if engine.steps != seen or not engine.under_way():
                seen, since = engine.steps, time.monotonic()
            elif time.monotonic() - since > STALL_SECONDS:
                stalled(engine)
                return

    thread = threading.Thread(target=watch, name="vsteer-stall", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def fetch_models(grid: Grid) -> None:
    """Make or fetch what the grid names and this machine lacks."""
    for model in grid.model:
        if model.id in models.NAMED:
            models.resolve(model.id)
        elif not Path(model.id).expanduser().exists() and not (grid.folder / model.id).exists():
            fetched(model.id, model.revision)


def load_vllm(
    plan: Plan, spec: EngineSpec, extracts: bool, tell: Callable[..., None] = lambda event, **fields: None
) -> Engine:
    """One engine, or several as one; `tell` hears of those that die."""
    from vsteer.engine.device_slices import find_slices
    from vsteer.engine.driver import VllmEngine
    from vsteer.engine.replicas import Replicas, window
    from vsteer.engine.table import Capacity
    from vsteer.engine.vllm_compat import may_pass, unknown_seams

    if may_pass() and (unknown := unknown_seams()):
        tell("unknown_seams", seams=unknown)
    size, options = budget(plan), engine_options(plan.facts, spec)
    captures = CAPTURES if extracts else 0
    capacity = Capacity.for_grid(size.cells, size.vector_rows, size.terms, captures, size.ablates)
    make = partial(VllmEngine, str(plan.facts.folder), options=options, capacity=capacity)
    if spec.replicas == 1:
        return make()
    return Replicas(
        make,
        find_slices(spec.replicas, options),
        window=window(spec.max_num_seqs),
        one_first=not spec.enforce_eager,
        tell=tell,
    )
