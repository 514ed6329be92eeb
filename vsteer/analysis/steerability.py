"""How one item answers to being steered: a line through its logit differences over the multipliers.

An item's points are its rows under one family of configurations (the same vector, norm, layer, positions,
system prompt, model), one a multiplier, and the unsteered row as multiplier 0. Letter orders stay apart: a
letter bias moves the level, and steering towards a letter shows as slopes of opposite sign. To combine the
two orders of an item, take the mean of their logit differences at each multiplier: the slope of these is
the mean of the two slopes, but correlation and residual have to be computed anew; means of those say
something else.

A family is held together by configs.parquet; a row whose configuration is no longer planned is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from vsteer.scoring.score_file import WholeParquet, readable, scoring_database
from vsteer.scoring.scorers import scorer_hash
from vsteer.store.scores import STEERABILITY, STEERABILITY_COLUMNS, schema_of, scores_path

IDENTITY = {"scorer": STEERABILITY, "version": 1}
HASH = scorer_hash(IDENTITY)
ITEMS_AT_ONCE = 20_000

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Lines:
    """One entry an item; NaN where it says nothing."""

    slope: Numbers
    rank_correlation: Numbers
    residual_sd: Numbers


def fit_lines(multipliers: Numbers, logit_diffs: Numbers) -> Lines:
    """Of items with equally many points: both are [item, point], all finite, multipliers distinct."""
    items, points = logit_diffs.shape
    nothing = np.full(items, np.nan)
    if points < 2:
        return Lines(nothing, nothing, nothing)
    x = multipliers - multipliers.mean(1, keepdims=True)
    y = logit_diffs - logit_diffs.mean(1, keepdims=True)
    slope = (x * y).sum(1) / (x * x).sum(1)
    residual_sd = nothing
    if points > 2:
        residual_sd = np.sqrt(((y - slope[:, None] * x) ** 2).sum(1) / (points - 2))
    return Lines(
        slope, _correlation(stats.rankdata(x, axis=1), stats.rankdata(logit_diffs, axis=1)), residual_sd
    )


def _correlation(a: Numbers, b: Numbers) -> Numbers:
    """Pearson's, row by row; of ranks (ties share their mean rank) it is Spearman's."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Numbers = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return found


def write_steerability(folder: Path) -> tuple[Path, int]:
    """Compute it for every item of a run as its rows stand, replacing what was there; the file, and lines."""
    path = scores_path(folder, STEERABILITY, HASH)
    schema = schema_of(STEERABILITY, HASH, IDENTITY)
    written = 0
    database = scoring_database(folder)
    with readable(folder):
        writer = WholeParquet(path, schema)
        try:
            for batch in _items(database):
                table = _with_lines(batch, schema)
                writer.write(table)
                written += len(table)
            writer.finish()
        except BaseException:
            writer.abandon()
            raise
        finally:
            database.close()
    return path, written


# What must agree between a steered row and its baseline: everything but what steers.
_SETTING = (
    "evaluation, model, model_commit, dtype, quantization, kv_cache_dtype, template, system, system_prompt,"
    " forced_prefix"
)
_FAMILY_NAMES = [
    "vector", "vector_sha256", "norm", "control", "control_index", "layers", "layer", "depth", "operation",
    "positions",
]  # fmt: skip
_FAMILY = ", ".join(_FAMILY_NAMES)
_CONFIG_ONLY = (
    "model_commit",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "template",
    "system_prompt",
    "forced_prefix",
)
_ITEM = "item_id, original_item_id, letter_order"

ITEMS = f"""
with originals as (
    select evaluation, item_id, any_value(nullif(swapped_from, '')) as original from prompts group by all
),
scored as (
    select r.*, {", ".join(f"c.{name}" for name in _CONFIG_ONLY)},
           coalesce(o.original, r.item_id) as original_item_id,
           r.status = 'ok' and isfinite(r.logit_diff) as usable
    from (select row_id, config_id, item_id, evaluation, kind, sample, letter_order, model, {_FAMILY},
                 multiplier, system, status, logit_diff, total_mass from rows) r
    join configs c using (config_id)
    left join originals o on o.evaluation = r.evaluation and o.item_id = r.item_id
    where r.kind = 'choice' and r.sample = 0 and r.multiplier is not null
),
baselines as (
    -- a system prompt that is a control may be an evaluation's own as well: one of the two is enough
    select * from scored where len(layers) = 0
    qualify row_number() over (partition by {_SETTING}, {_ITEM} order by control, row_id) = 1
),
steered as (select * from scored where len(layers) > 0),
families as (select distinct {_SETTING}, {_ITEM}, {_FAMILY} from steered),
points as (
    select {_SETTING}, {_ITEM}, {_FAMILY}, multiplier, logit_diff, total_mass, usable from steered
    union all
    select {_SETTING}, {_ITEM}, {", ".join(f"f.{name}" for name in _FAMILY_NAMES)},
           b.multiplier, b.logit_diff, b.total_mass, b.usable
    from families f join baselines b using ({_SETTING}, {_ITEM})
)
select evaluation, {_ITEM}, model, {_FAMILY}, system,
       coalesce(list(multiplier order by multiplier) filter (usable), []) as multipliers,
       coalesce(list(logit_diff order by multiplier) filter (usable), []) as logit_diffs,
       count(*) filter (not coalesce(usable, false)) as left_out,
       max(logit_diff) filter (usable and multiplier = 0) as baseline,
       min(total_mass) filter (usable) as least_mass
from points group by {_SETTING}, {_ITEM}, {_FAMILY}
"""


def _items(database: duckdb.DuckDBPyConnection) -> Iterator[pa.RecordBatch]:
    yield from database.sql(ITEMS).to_arrow_reader(ITEMS_AT_ONCE)


def _with_lines(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    multipliers, logit_diffs = batch["multipliers"].to_pylist(), batch["logit_diffs"].to_pylist()
    points = np.array([len(one) for one in multipliers])
    slope, rank_correlation, residual_sd = (np.full(len(points), np.nan) for _ in range(3))
    for count in np.unique(points):
        where = np.flatnonzero(points == count)
        lines = fit_lines(
            np.array([multipliers[n] for n in where], float), np.array([logit_diffs[n] for n in where], float)
        )
        slope[where], rank_correlation[where] = lines.slope, lines.rank_correlation
        residual_sd[where] = lines.residual_sd
    found = {
        "scorer_hash": [HASH] * len(points),
        "points": points,
        "slope": _nulls(slope),
        "rank_correlation": _nulls(rank_correlation),
        "residual_sd": _nulls(residual_sd),
        "wrong_way": [None if np.isnan(value) else int(value < 0) for value in slope],
    }
    columns = [
        pa.array(found[column.name], column.type)
        if column.name in found
        else batch[column.name].cast(column.type)
        for column in STEERABILITY_COLUMNS
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _nulls(values: Numbers) -> pa.Array:
    return pa.array(values, pa.float64(), from_pandas=True)
