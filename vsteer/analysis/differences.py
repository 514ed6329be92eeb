"""The intervals of what two runs or two models differ in, item by item, which no single run has stored."""

from __future__ import annotations

import json
from typing import Any

import duckdb
import numpy as np

from vsteer.analysis.intervals import why_no_interval
from vsteer.analysis.statistics import intervals_of
from vsteer.results.statistics_files import MEASURES
from vsteer.results.views import DIFFERENCES_SCHEMA
from vsteer.store.database import quoted
from vsteer.store.schema import SQL_TYPES

PAIRED = """
select c.condition, c.other, b.effect - a.effect as logit_diff, b.effect_p - a.effect_p as p_match
from compared c
join item_effects a on a.condition = c.condition
join item_effects b on b.condition = c.other and b.item = a.item
where a.effect is not null and b.effect is not null
order by c.condition, c.other, a.item
"""


def differences_over_runs(database: duckdb.DuckDBPyConnection) -> str | None:
    """The statement that fills the view `differences`; None where nothing is compared."""
    found = database.execute(PAIRED).fetchnumpy()
    if not len(found["condition"]):
        return None
    together = np.stack([found["condition"], found["other"]], axis=1)
    pairs, starts = np.unique(together, axis=0, return_index=True)
    records: list[dict[str, Any]] = []
    for measure in MEASURES:
        parts = np.split(np.ma.filled(found[measure].astype(float), np.nan), starts[1:])
        values = [part[np.isfinite(part)] for part in parts]
        for (condition, other), own, interval in zip(
            pairs.tolist(), values, intervals_of(values), strict=True
        ):
            names = {"condition": condition, "other": other, "measure": measure}
            records.append({**names, **interval, "why": why_no_interval(own)})
    shape = {column.name: SQL_TYPES[column.type] for column in DIFFERENCES_SCHEMA}
    parsed = f"from_json({quoted(json.dumps(records))}, {quoted(json.dumps([shape]))})"
    return (
        "create or replace temp view differences as"
        f" select null::VARCHAR as run, record.* from (select unnest({parsed}) as record)"
    )
