"""The effects of a run as arrays, [configuration, item]: one value an item, the mean of its rows.

A *sweep* is what one vector does in one setting: all layers, all multipliers, its controls too (`family` in
effects.sql). A *block* is a sweep's part at one multiplier or KL dose; one block is in memory at a time.
Reading scans the rows once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import duckdb
import numpy as np
from numpy.typing import NDArray

from vsteer.analysis.intervals import Numbers
from vsteer.results.statistics_files import MEASURES
from vsteer.store.database import records

Flags = NDArray[np.bool_]

SWEEPS = """
create temp table steered as
with asked as (
    select run, evaluation, system, count(distinct coalesce(nullif(swapped_from, ''), item_id)) as items
    from prompts where kind = 'choice' group by all
)
select c.*, billions_in(c.model) as billions, coalesce(a.items, 0) as planned_items,
       dense_rank() over (order by c.family, c.kl, c.level) as block, coalesce(e.counted, false) as counted
from conditions c
left join asked a using (run, evaluation, system)
left join control_effects e using (condition)
where c.kind = 'choice' and c.vector <> ''
"""
# From the rows and not from item_effects, which leaves the controls out.
VALUES = """
create temp table item_values as
select s.family, s.block, s.control = '' as own, e.condition, e.item,
       avg(e.effect) as logit_diff, avg(e.effect_p) as p_match,
       avg(e.baseline_logit_diff) filter (e.effect is not null) as logit_diff_baseline,
       avg(e.baseline_p_match) filter (e.effect_p is not null) as p_match_baseline,
       count(e.effect) as logit_diff_rows, count(e.effect_p) as p_match_rows
from effects e join steered s using (condition)
group by all order by block
"""
CONDITIONS = """
select condition, config_id, evaluation, model, billions, vector, norm, control, control_index, layers, layer,
       depth, operation, multiplier, positions, system, direction, relative_norm, kl, level, rows,
       planned_items, family, block, counted
from steered order by family, block, condition
"""
CONTROL_VECTORS = """
select family, control, count(distinct control_index) as vectors
from steered where control in ('random', 'shuffled', 'unrelated')
group by family, control order by family, control
"""


@dataclass(frozen=True)
class Condition:
    """A steered configuration of a choice evaluation; its names are those of the view `conditions`."""

    condition: int
    config_id: str
    evaluation: str
    model: str
    billions: float | None
    vector: str
    norm: str
    control: str
    control_index: int | None
    layers: tuple[int, ...]
    layer: int | None
    depth: float | None
    operation: str
    multiplier: float | None
    positions: str
    system: str
    direction: int
    relative_norm: float | None
    kl: float | None
    level: float | None
    rows: int  # planned
    planned_items: int
    family: int
    block: int
    counted: bool  # a control vector that its vector is held against: see control_effects in effects.sql


@dataclass(frozen=True)
class Effects:
    """The effects of some configurations on the same items, by measure; NaN where there is none."""

    conditions: Sequence[Condition]
    effects: Mapping[str, Numbers]
    baselines: Mapping[str, Numbers]
    # how many rows have an effect, one number a configuration
    rows: Mapping[str, NDArray[np.int64]]
    # how many control vectors the whole sweep has, by kind
    control_vectors: Mapping[str, int]

    def whole(self, wanted: Sequence[Condition], measure: str) -> Flags:
        """Which items all of these configurations have."""
        whole: Flags = np.isfinite(self.effects[measure][self.places(wanted)].sum(0))
        return whole

    def places(self, wanted: Sequence[Condition]) -> list[int]:
        return [self._at[condition.condition] for condition in wanted]

    @cached_property
    def _at(self) -> dict[int, int]:
        return {condition.condition: place for place, condition in enumerate(self.conditions)}


class ItemValues:
    """The effects of one run, through a database of `connect_runs`."""

    def __init__(self, database: duckdb.DuckDBPyConnection) -> None:
        self._database = database
        database.execute(SWEEPS)
        database.execute(VALUES)
        self.conditions = [
            Condition(**{**record, "layers": tuple(record["layers"])})
            for record in records(database, CONDITIONS)
        ]
        self._control_vectors: dict[int, dict[str, int]] = {}
        for family, control, vectors in database.execute(CONTROL_VECTORS).fetchall():
            self._control_vectors.setdefault(family, {})[control] = vectors

    def blocks(self) -> Iterator[Effects]:
        """Sweep by sweep, each multiplier by itself, controls included."""
        for block, conditions in groupby(self.conditions, lambda condition: condition.block):
            yield self._read(f"block = {block}", list(conditions))

    def sweeps(self) -> Iterator[Effects]:
        """Each sweep of a vector with all its multipliers, without controls."""
        for family, conditions in groupby(self.conditions, lambda condition: condition.family):
            own = [condition for condition in conditions if not condition.control]
            if own:
                yield self._read(f"family = {family} and own", own)

    def _read(self, which: str, conditions: Sequence[Condition]) -> Effects:
        found = self._database.execute(f"select * from item_values where {which}").fetchnumpy()
        numbers = np.array([condition.condition for condition in conditions])
        order = np.argsort(numbers)
        at = order[np.searchsorted(numbers, found["condition"], sorter=order)]
        items, item_at = np.unique(found["item"], return_inverse=True)

        def spread(name: str) -> Numbers:
            values = np.full((len(numbers), len(items)), np.nan)
            values[at, item_at] = np.ma.filled(found[name].astype(float), np.nan)
            return values

        def added(name: str) -> NDArray[np.int64]:
            return np.bincount(at, weights=found[name], minlength=len(numbers)).astype(np.int64)

        return Effects(
            conditions,
            {measure: spread(measure) for measure in MEASURES},
            {measure: spread(f"{measure}_baseline") for measure in MEASURES},
            {measure: added(f"{measure}_rows") for measure in MEASURES},
            self._control_vectors.get(conditions[0].family, {}),
        )
