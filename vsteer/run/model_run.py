"""One model's part of a run: its engine, its vectors, its rows, and the perplexity of its texts.

An engine that dies or hangs is started again, three times for a model; what was written stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from vsteer.errors import EngineError, StoreError
from vsteer.grid.spec import EngineSpec
from vsteer.packages import vllm_version
from vsteer.plan.budget import budget
from vsteer.plan.plan import Plan
from vsteer.plan.rates import Meter, Rate, keep, one_rate
from vsteer.plan.times import characters
from vsteer.protocol import Engine, Vectors
from vsteer.run.conditions import Conditions, write_others
from vsteer.run.cosines import Cosines
from vsteer.run.engines_file import engines_shown
from vsteer.run.interrupt import Interrupt
from vsteer.run.kl_doses import KlDoses
from vsteer.run.loading import Load
from vsteer.run.loop import Counts, Provenance, RowLoop, ToDo
from vsteer.run.progress import RunProgress, duration
from vsteer.run.rounding import measure_rounding
from vsteer.run.stalls import STALL_SECONDS, watched
from vsteer.run.stream_norms import StreamNorms
from vsteer.run.vectors import RunVectors, StoredVectors
from vsteer.scoring.perplexity import CoherenceFile
from vsteer.scoring.task_scores import TaskScores
from vsteer.store.planned import Planned, Standing
from vsteer.store.store import Store
from vsteer.vectors.run_norms import write_vector_norms

RESTARTS = 3


@dataclass(frozen=True)
class RunContext:
    """What the models of one start share."""

    store: Store
    progress: RunProgress
    interrupt: Interrupt
    counts: Counts
    planned: Planned
    standing: Standing  # when the run started
    retry_errors: bool  # whether those of them that failed are tried again, each once a start
    on_vectors: Callable[[Plan, StoredVectors], None]  # called once a model's vectors are there
    load: Load


class ModelRun:
    """The rows of one plan, through as many engines as it takes."""

    def __init__(self, plan: Plan, first: int, context: RunContext) -> None:
        self.plan, self.context = plan, context
        self._first = first  # the place of its first row
        self.store, self.progress = context.store, context.progress
        self.vectors = RunVectors(plan, context.store.folder)
        self.stream = StreamNorms(plan, context.store.folder)
        self.doses = KlDoses(plan, context.store.folder, context.retry_errors)
        self.spec = plan.grid.engine_for(plan.grid.model[plan.model])
        self._hung = False
        self._rates: dict[str, Rate | None] = {}  # what this start measured, for later plans
        self._by_vllm: Vectors | None = None  # the directions, once rows were computed with them

    def run(self) -> None:
        to_do = self._to_do(self.context.standing)
        if not to_do and not self._texts_open():
            self._score_rows()
            return
        self.vectors.set_damaged_aside()
        self.vectors.check()
        self.doses.check()
        self._read_heads()
        spec, restarts = self.spec, 0
        while not self.context.interrupt.stopping:
            engine: Engine | None = None
            try:
                engine = self._load(spec)
                with watched(engine, self._stalled), engines_shown(self.store.folder, engine):
                    self._with_engine(engine, to_do)
                break
            except EngineError as error:
                self.store.flush()
                to_do = self._to_do(self.store.standing(self.context.planned))
                restarts += 1
                codes = engine.exit_codes() if engine else []
                self.store.event("engine_died", error=error.message, exit_codes=codes, restart=restarts)
                if restarts > RESTARTS:
                    raise
                # An engine that isn't ended by us has mostly run out of memory.
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
        self._score_rows()
        # the reference needs the memory that the engine had
        self._measure_rounding()

    def _read_heads(self) -> None:
        """What Hugging Face reads comes first, while no engine holds the memory."""
        for recipe in self.vectors.to_extract:
            if recipe.heads is not None and not self._stopping():
                self.progress.counting(f"reading heads for the vector {recipe.name}", recipe.members)
                self.vectors.read_heads(recipe, self.progress.step)
                self.store.event("extract", vector=recipe.name, warning=None)

    def _load(self, spec: EngineSpec) -> Engine:
        name = self.plan.facts.name
        self.progress.phase(
            f"{name}: loading it into vLLM"
            + (f", up to {spec.replicas.most} times" if spec.replicas.most > 1 else "")
            + ("" if spec.enforce_eager else " and compiling")
            + ", and proving that it steers (this takes a while)"
        )
        began = time.monotonic()
        captures = bool(self.vectors.to_extract) or self.stream.wanted or bool(self.plan.conditions)
        engine = self.context.load(self.plan, spec, captures)
        seconds = time.monotonic() - began
        self.progress.phase(f"{name} is ready after {duration(seconds)}")
        self._rates["start"] = one_rate(1, seconds)
        self.store.event(
            "engine_start",
            model=name,
            seconds=round(seconds, 1),
            max_num_seqs=spec.max_num_seqs,
            forks=engine.info.forks,
        )
        return engine

    def _with_engine(self, engine: Engine, to_do: ToDo) -> None:
        for recipe in self.vectors.to_extract:
            self.progress.counting(f"extracting the vector {recipe.name}", recipe.members)
            began = time.monotonic()
            warning = self.vectors.extract(engine, recipe, self.progress.step)
            self._rates["characters"] = one_rate(characters(recipe), time.monotonic() - began)
            self.store.event("extract", vector=recipe.name, warning=warning)
            if warning:
                self.progress.warn(f"{warning}; better: vsteer vectors extract --dtype float32, then `file:`")
            if self._stopping():
                return
        self.progress.phase(f"{len(self.plan.vectors):,} vectors, controls included")
        stored = self.vectors.stored()
        if not self._find_doses(engine, stored):
            return
        to_do = replace(to_do, plan=self.plan)
        self.context.on_vectors(self.plan, stored)
        if self.stream.wanted:
            name = self.plan.facts.name
            self.progress.counting(f"measuring how long the stream of {name} is", len(self.stream.prompts))
            self.stream.measure(engine, self.progress.step)
        write_vector_norms(self.store.folder)
        conditions = self._decide(engine, stored) if self.plan.conditions else None
        if conditions and self._stopping():
            return
        engine.load(stored.directions, self.plan.steerings())
        self.progress.engines = engine.engines
        self.progress.rows_begin(self.context.counts)
        meter = Meter()
        version = vllm_version() if engine.info.kind == "vllm" else ""
        provenance = Provenance(engine.info.kind, version, self.store.session, stored)
        counts, progress = self.context.counts, self.progress.rows
        loop = RowLoop(engine, self.store, provenance, counts, progress, self._stopping, meter.add)
        if conditions is None:
            loop.run(to_do.prompts())
        else:
            loop.run(conditions.met(to_do.prompts()))
            others = to_do.prompts()
            write_others(conditions, others, self.store, provenance, counts, progress, self._stopping)
        self._rates |= meter.rates()
        if engine.info.kind == "vllm":
            self._by_vllm = stored.directions
        self._coherence(engine)
        if engine.info.kind == "vllm":
            keep(self.plan, self._rates)

    def _decide(self, engine: Engine, stored: StoredVectors) -> Conditions:
        """On which prompts the plan's conditions hold, by what stands or is measured now."""
        cosines = Cosines(self.plan, self.store.folder, stored, self.store.session)
        if prompts := cosines.lacking():
            requests = sum(1 for _ in cosines.requests(prompts))
            self.progress.counting("reading the unsteered prompts for the conditions", requests)
            cosines.measure(engine, prompts, self.progress.step, self._stopping)
        conditions = Conditions(cosines)
        for line in conditions.described():
            self.progress.say(line)
        return conditions

    def _measure_rounding(self) -> None:
        if self._by_vllm is None or self._stopping():
            return
        self.store.flush()
        plan, progress, began = self.plan, self.progress, time.monotonic()
        if found := measure_rounding(plan, self.store.folder, self._by_vllm, progress, self._stopping):
            progress.say(found)
            keep(plan, {"rounding": one_rate(1, time.monotonic() - began)})

    def _find_doses(self, engine: Engine, stored: StoredVectors) -> bool:
        """The multipliers that the plan's doses still lack; False where the run is stopped meanwhile."""
        if count := len(self.doses.to_find):
            self.progress.counting("finding the multipliers of doses", count)
            began = time.monotonic()
            if not self.doses.find(engine, stored.directions, self.progress.step, self._stopping):
                return False
            self._rates["dose_tokens"] = one_rate(count * self.doses.tokens, time.monotonic() - began)
            self.store.event("kl_doses", doses=count)
        self.plan = self.doses.applied()
        self.doses.keep()
        return True

    def _score_rows(self) -> None:
        """What evaluations that have a scoring of their own say of the rows as they stand."""
        scoring = {block.evaluation: block.spec.evaluation for block in self.plan.blocks}
        for name, evaluation in scoring.items():
            about = evaluation.own_scores
            if about is None:
                continue
            self.store.flush()
            try:
                with TaskScores(self.store.folder, name, about) as file:
                    if file.result.open:
                        self.progress.phase(f"scoring the rows of {name}")
                        file.score(evaluation.score)
            except StoreError as error:
                self.progress.warn(f"no scores of {name}: {error.message}; the same command makes them")

    def _coherence(self, engine: Engine) -> None:
        """Each text's perplexity, while the model is there. `vsteer score` can do it later."""
        if not self._coherent or self._stopping():
            return
        self.store.flush()
        try:
            with self._coherence_file() as file:
                left = file.result.open
                if not left:
                    return
                self.progress.counting("perplexity of the texts under the unsteered model", left)
                began = time.monotonic()
                found = file.score(engine, lambda _: self.progress.step(), self._stopping)
                seconds = time.monotonic() - began
        except StoreError as error:
            self.progress.warn(f"no perplexities: {error.message}; later: vsteer score --scorer perplexity")
        else:
            self.store.event("coherence", scored=found.scored, failed=found.failed, open=found.open)
            size = budget(self.plan)
            texts = sum(block.rows for block in size.blocks if block.coherence_tokens)
            scored = size.coherence_tokens * (left - found.open) / max(1, texts)
            self._rates["coherence_tokens"] = one_rate(scored, seconds)

    @property
    def _coherent(self) -> list[str]:
        """The evaluations whose texts want a perplexity."""
        return [
            name
            for name, _, place in self.plan.grid.named_evaluations()
            if self.plan.grid.evaluations[place].wants_perplexity
        ]

    def _coherence_file(self) -> CoherenceFile:
        facts = self.plan.facts
        return CoherenceFile(self.store.folder, facts.name, facts.output_identity(), self._coherent)

    def _texts_open(self) -> bool:
        if not self._coherent:
            return False
        try:
            with self._coherence_file() as file:
                return file.result.open > 0
        except StoreError:
            return False

    def _to_do(self, standing: Standing) -> ToDo:
        retry = self.context.standing if self.context.retry_errors else None
        return ToDo(self.plan, self._first, standing, retry)

    def _stopping(self) -> bool:
        return self.context.interrupt.stopping

    def _stalled(self, engine: Engine) -> None:
        """Name what hangs, and end the engine: the step under way fails, and the engine is started again."""
        under_way = engine.under_way()
        self._hung = True
        engine.kill()
        self.progress.say(
            f"no row finished for {duration(STALL_SECONDS)}; {len(under_way)} requests are under way, first "
            f"{', '.join(under_way[:3])}: the engine was ended"
        )
        self.store.event("stall", under_way=under_way[:100], count=len(under_way))
