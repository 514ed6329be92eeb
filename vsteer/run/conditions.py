"""Which rows of a run are steered, where configurations have a condition on the prompt.

It is decided once a prompt, by the unsteered stream (`cosines.py`). Where it holds, rows go to the engine as
all others do. Where it doesn't, a row has what the baseline's row has, and nothing is computed for it. Where
it could not be decided the row fails: it is neither steered nor left unsteered by default.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vsteer.errors import StoreError
from vsteer.plan.block_rows import ConfigColumns
from vsteer.plan.configurations import Condition, Config
from vsteer.plan.rows import PromptRows
from vsteer.run.cosines import Cosines
from vsteer.run.loop import SUMMED, Attempts, Counts, Provenance
from vsteer.store.database import in_memory, quoted
from vsteer.store.schema import ROWS_SCHEMA
from vsteer.store.store import Store
from vsteer.store.views import rows_sql

# What becomes of a row.
STEERED, LEFT_ALONE, UNDECIDED = 0, 1, 2
# How many conditions a run names at its end.
MOST_SAID = 12


class Conditions:
    """What is decided of the prompts of one plan."""

    def __init__(self, cosines: Cosines) -> None:
        self.cosines = cosines
        self._configs: tuple[Config, ...] = ()
        self._conditions: list[Condition] = []
        self._numbers: NDArray[np.intp] = np.empty(0, np.intp)

    def met(self, prompts: Iterable[Attempts]) -> Iterator[Attempts]:
        """What is left to an engine: the rows without a condition, and those whose condition holds."""
        for prompt, attempts in prompts:
            wanted = np.where(self.decided(prompt) == STEERED, attempts, 0).astype(np.int32)
            if wanted.any():
                yield prompt, wanted

    def decided(self, prompt: PromptRows) -> NDArray[np.int8]:
        """What becomes of each of the prompt's rows."""
        if prompt.configs is not self._configs:
            self._configs = prompt.configs
            self._conditions = list(dict.fromkeys(one.when for one in prompt.configs if one.when))
            numbers = {condition: n for n, condition in enumerate(self._conditions, 1)}
            self._numbers = np.array([numbers[one.when] if one.when else 0 for one in prompt.configs])
        found = np.array([STEERED, *(self._decide(one, prompt) for one in self._conditions)], np.int8)
        return np.repeat(found[self._numbers], prompt.samples)

    def _decide(self, condition: Condition, prompt: PromptRows) -> int:
        cosine = self.cosines.of(condition, prompt.rendered.prompt_id)
        if cosine is None:
            return UNDECIDED
        return STEERED if condition.holds(cosine) else LEFT_ALONE

    def described(self) -> Iterator[str]:
        """On how many prompts each condition holds: `harm at layer 8, mean above 0.05 holds on 3 of ...`."""
        held: Counter[tuple[str, Condition]] = Counter()
        asked: Counter[tuple[str, Condition]] = Counter()
        for block in self.cosines.plan.known_blocks():
            for condition in dict.fromkeys(config.when for config in block.configs if config.when):
                for rendered in block.prompts:
                    cosine = self.cosines.of(condition, rendered.prompt_id)
                    asked[block.evaluation, condition] += 1
                    held[block.evaluation, condition] += cosine is not None and condition.holds(cosine)
        for (evaluation, condition), count in list(asked.items())[:MOST_SAID]:
            times = held[evaluation, condition]
            yield f"{evaluation}: {condition} holds on {times:,} of {count:,} prompts"
        if len(asked) > MOST_SAID:
            yield f"and {len(asked) - MOST_SAID:,} more: vsteer sql condition_rates"


def write_others(
    conditions: Conditions,
    prompts: Iterable[Attempts],
    store: Store,
    provenance: Provenance,
    counts: Counts,
    on_progress: Callable[[Counts, int], None] = lambda counts, waiting: None,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Write the rows that no engine computes, once the baselines' rows stand."""
    store.flush()
    columns: ConfigColumns | None = None
    unsteered = _Unsteered.none()
    for prompt, attempts in prompts:
        if stopping():
            return
        decided = conditions.decided(prompt)
        if not (attempts[decided != STEERED] > 0).any():
            continue
        if columns is None or columns.configs is not prompt.configs:
            columns = ConfigColumns(prompt.configs, partial(provenance.of, forked=False))
            unsteered = _Unsteered.of(store, prompt.configs[0])
        for outcome in (LEFT_ALONE, UNDECIDED):
            places = np.flatnonzero((decided == outcome) & (attempts > 0))
            if not len(places):
                continue
            made: dict[str, Any] = {
                "attempt": pa.array(attempts[places]),
                "run_session": store.session,
            }
            if outcome == LEFT_ALONE:
                rows = columns.copied(prompt, places, unsteered.of_samples(prompt, places), made)
            else:
                made |= dict.fromkeys(("started_at", "finished_at"), datetime.now(UTC))
                why = conditions.cosines.why_not(prompt.rendered.prompt_id)
                errors = [
                    f"could not decide whether {prompt.configs[place // prompt.samples].when}: {why}"
                    for place in places.tolist()
                ]
                rows = columns.undecided(prompt, places, errors, made)
            store.append_rows(rows)
            failed = pc.sum(pc.not_equal(rows["status"], "ok")).as_py()
            counts.add(dict.fromkeys(SUMMED, 0), len(rows), failed)
            on_progress(counts, 0)


class _Unsteered:
    """The rows of one baseline as they stand."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows
        names = ("item_id", "letter_order", "sample")
        keys = zip(*(rows[name].to_pylist() for name in names), strict=True)
        self._places = {key: place for place, key in enumerate(keys)}

    @classmethod
    def none(cls) -> _Unsteered:
        return cls(ROWS_SCHEMA.empty_table())

    @classmethod
    def of(cls, store: Store, baseline: Config) -> _Unsteered:
        assert baseline.vector is None
        with in_memory() as database:
            names, wanted = ", ".join(ROWS_SCHEMA.names), quoted(baseline.config_id)
            rows = database.sql(f"select {names} from ({rows_sql(store.folder)}) where config_id = {wanted}")
            return cls(rows.to_arrow_table().cast(ROWS_SCHEMA))

    def of_samples(self, prompt: PromptRows, places: NDArray[np.intp]) -> pa.Table:
        """The row of the sample of each of these places."""
        rendered = prompt.rendered
        wanted = [(rendered.item_id, rendered.order, int(place) % prompt.samples) for place in places]
        if any(key not in self._places for key in wanted):
            raise StoreError(
                f"the unsteered row of {rendered.item_id} is not there, and rows have its values",
                "give the same command again: it computes what is missing",
            )
        return self._rows.take([self._places[key] for key in wanted])
