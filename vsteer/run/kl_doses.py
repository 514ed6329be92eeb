"""The multipliers of a plan's doses: found through the forks of its engine, each once, and kept in the run.

RUN/vectors/kl_doses.parquet has a line for each dose of each steering, with what it was found by. It is
written as they are found, so that a resume goes on with the others and no row is steered by another number;
where it is lost, the numbers that configurations and rows have are taken. A dose that no multiplier has is
kept too, with the reason: its rows fail with it.

A dose is measured with every token of the neutral text steered, whatever positions a configuration has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vsteer.datasets.neutral import NeutralText
from vsteer.errors import SteeringFault, UnsupportedError
from vsteer.identity import VERSION, identify
from vsteer.operations import OPERATIONS
from vsteer.plan.configurations import Config
from vsteer.plan.plan import Plan
from vsteer.plan.ways import why_not
from vsteer.prompts.template import plain_text
from vsteer.protocol import Block, Engine, Prompt, Steering, Vectors
from vsteer.run.dose_search import DoseSearch
from vsteer.store.files import write_sealed
from vsteer.store.schema import KL_DOSES_SCHEMA
from vsteer.store.shards import ROWS_FOLDER
from vsteer.store.sound import faults_of_tables, set_aside_damaged
from vsteer.store.views import CONFIGS, KL_DOSES
from vsteer.validation import shortened
from vsteer.vectors.recipe import EXTRACTION_VERSION

Record = dict[str, Any]


class KlDoses:
    """The doses of one plan in one run's folder: found there, or to be found.

    With `again` those that were found to have no multiplier are looked for once more.
    """

    def __init__(self, plan: Plan, run_folder: Path, again: bool = False) -> None:
        self.plan, self.folder = plan, run_folder
        self.path = run_folder / KL_DOSES
        self._configs: dict[str, list[Config]] = {}
        for config in plan.configs.values() if not plan.pending else ():
            if config.dose is not None:
                self._configs.setdefault(self._id(config), []).append(config)
        self._records = {one["dose_id"]: one for one in self._read()} if self._configs else {}
        if again:
            self._records = {name: one for name, one in self._records.items() if not one["why"]}
        standing = self._standing() if self.to_find else {}
        for name in self.to_find:
            known = [standing[one.config_id] for one in self._configs[name] if one.config_id in standing]
            if known:
                self._records[name] = self._record(name, known[0], None, "")

    @property
    def to_find(self) -> list[str]:
        """The doses whose multipliers are not known."""
        return [name for name in self._configs if name not in self._records]

    @property
    def tokens(self) -> int:
        """How many tokens of neutral text each steering is measured on, in the longest of the texts."""
        texts = {config.dose.text for (config, *_) in self._configs.values() if config.dose}
        return max((sum(map(len, self._tokens(text))) for text in texts), default=0)

    def check(self) -> None:
        """Refuse what can't be done before the model is loaded, which takes long."""
        if self.to_find and (why := why_not(self.plan)):
            raise UnsupportedError(
                f"the multipliers of {len(self.to_find):,} doses are found through forks, which this lacks: "
                f"{why}",
                hint="write multipliers, or let the engine use forks",
            )

    def applied(self) -> Plan:
        """The plan with all multipliers that are known."""
        if not self._configs:
            return self.plan
        found = {
            config.config_id: self._records[name]
            for name, configs in self._configs.items()
            if name in self._records
            for config in configs
        }

        def with_number(config: Config) -> Config:
            one = found.get(config.config_id)
            return replace(config, multiplier=one["multiplier"], unreachable=one["why"]) if one else config

        blocks = tuple(
            replace(block, configs=tuple(map(with_number, block.configs))) for block in self.plan.blocks
        )
        return replace(self.plan, blocks=blocks)

    def find(
        self,
        engine: Engine,
        vectors: Vectors,
        on_found: Callable[[], None],
        stopping: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Find what is missing, all at once; whether it came to its end.

        Each round tries one multiplier for each of those that are open.
        """
        if not engine.info.blocks:
            raise UnsupportedError(
                f"doses are found through forks, and the engine {engine.info.kind} computes none",
                hint="write multipliers",
            )
        searches = {name: self._search(name) for name in self.to_find}
        while searches:
            if stopping():
                return False
            tried = {name: self._steering(name, one.next_multiplier) for name, one in searches.items()}
            measured = self._measured(engine, vectors, tried)
            for name, search in searches.items():
                search.take(measured[name])
                if not search.open:
                    self._records[name] = self._record(name, search.multiplier, search.measured, search.why)
                    on_found()
            searches = {name: one for name, one in searches.items() if one.open}
            self.keep()
        return True

    def keep(self) -> None:
        """Write what is known, if it is more than what stands."""
        for name, configs in self._configs.items():
            if name in self._records:
                self._records[name]["config_ids"] = [one.config_id for one in configs]
        before = {one["dose_id"]: one for one in self._read()}
        if self._records and self._records != before:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_sealed(self.path, pa.Table.from_pylist(list(self._records.values()), KL_DOSES_SCHEMA))

    def _id(self, config: Config) -> str:
        """What a dose is known by: all that decides its multiplier."""
        assert config.vector is not None
        assert config.dose is not None
        return identify(
            {
                "version": [VERSION, EXTRACTION_VERSION],
                "model": self.plan.facts.identity(),
                "vector": config.vector.recipe,
                "layers": list(config.layers),
                "operation": config.operation,
                "dose": config.dose.identity(),
            }
        )

    def _search(self, name: str) -> DoseSearch:
        config = self._configs[name][0]
        assert config.dose is not None
        asked = config.dose.asked
        return DoseSearch(asked.kl, asked.sign, OPERATIONS[config.operation].acts_at_zero)

    def _steering(self, name: str, multiplier: float) -> Steering:
        return Steering(self._configs[name][0].terms_at(multiplier), "all")

    def _measured(
        self, engine: Engine, vectors: Vectors, tried: Mapping[str, Steering]
    ) -> Mapping[str, float]:
        """The mean divergence of each over all tokens of its text."""
        engine.load(vectors, dict.fromkeys(tried.values()))
        by_text: dict[NeutralText, list[str]] = {}
        for name in tried:
            dose = self._configs[name][0].dose
            assert dose is not None
            by_text.setdefault(dose.text, []).append(name)
        found: dict[str, float] = {}
        for text, names in by_text.items():
            # doses of one steering begin with the same multiplier
            steerings = tuple(dict.fromkeys(tried[name] for name in names))
            total, count = np.zeros(len(steerings)), 0
            blocks = list(self._blocks(text, steerings))
            for block, scores in engine.run_blocks(blocks):
                if scores.kl is None or scores.errors:
                    why = next(iter(scores.errors.values()), "no divergence came back")
                    raise SteeringFault(f"{block.id} was not measured: {why}")
                total += scores.kl.astype(np.float64).sum(axis=1)
                count += len(block.asked)
            if count != sum(len(block.asked) for block in blocks):
                raise SteeringFault("blocks of neutral text were handed to the engine and never came back")
            means = dict(zip(steerings, (total / count).tolist(), strict=True))
            found |= {name: means[tried[name]] for name in names}
        return found

    def _blocks(self, text: NeutralText, steerings: tuple[Steering, ...]) -> Iterator[Block]:
        """Each text's tokens behind its first one as an answer, so that each is read for what comes next."""
        for n, ids in enumerate(self._tokens(text)):
            asked = tuple((ids[1:end], (ids[end % len(ids)],)) for end in range(1, len(ids) + 1))
            yield Block(f"neutral text {n}", Prompt.plain(ids[:1]), asked, steerings, divergence=True)

    def _tokens(self, text: NeutralText) -> list[tuple[int, ...]]:
        return [plain_text(self.plan.tokenizer, one).token_ids for one in text.texts]

    def _record(self, name: str, multiplier: float | None, measured: float | None, why: str) -> Record:
        config = self._configs[name][0]
        vector, dose = config.vector, config.dose
        assert vector is not None
        assert dose is not None
        if why:
            of = f"{vector.control} control {vector.index} of " if vector.control else ""
            where = f"layer{'s' * (len(config.layers) > 1)} {', '.join(map(str, config.layers))}"
            sign = "positive" if dose.asked.sign > 0 else "negative"
            why = (
                f"no {sign} multiplier gives {of}{shortened(vector.name)}, {config.operation} at "
                f"{shortened(where)}, a KL divergence of {dose.asked.kl:g}: {why}"
            )
        return {
            "dose_id": name,
            "config_ids": [],
            "model": self.plan.facts.name,
            "vector": vector.name,
            "norm": vector.norm,
            "control": vector.control,
            "control_index": vector.index,
            "layers": list(config.layers),
            "operation": config.operation,
            "kl": dose.asked.kl,
            "sign": dose.asked.sign,
            "text": dose.text.name,
            "text_sha256": dose.text.sha256,
            "multiplier": multiplier,
            "measured_kl": measured,
            "why": why,
        }

    def _read(self) -> list[Record]:
        faults = faults_of_tables(self.folder, {self.path: KL_DOSES_SCHEMA})
        if list(faults.values()) != [None]:
            return []
        records: list[Record] = pq.read_table(self.path).to_pylist()
        return records

    def _standing(self) -> Mapping[str, float]:
        """The multipliers by their configurations, as an earlier start or its rows have them."""
        for path in (self.folder / CONFIGS, self.folder / ROWS_FOLDER):
            try:
                table = pq.read_table(path, columns=["config_id", "multiplier"])
            except (OSError, pa.ArrowException, ValueError):
                continue
            found = zip(table["config_id"].to_pylist(), table["multiplier"].to_pylist(), strict=True)
            return {name: multiplier for name, multiplier in found if multiplier is not None}
        return {}


def set_damaged_aside(run_folder: Path) -> None:
    """Make room for a damaged table; the writer of the run calls it, who has its lock."""
    path = run_folder / KL_DOSES
    faults = faults_of_tables(run_folder, {path: KL_DOSES_SCHEMA})
    set_aside_damaged(run_folder, faults, run_folder, "its numbers are taken from configurations and rows")


def with_known(plans: Sequence[Plan], run_folder: Path, again: bool) -> tuple[Plan, ...]:
    """The plans with the multipliers that earlier starts found."""
    return tuple(KlDoses(plan, run_folder, again).applied() for plan in plans)
