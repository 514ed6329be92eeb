"""statistics/: what SQL can't work out of the rows, computed once and stored beside them.

There is one file `statistics/TABLE.parquet` for each of TABLES. Its metadata says what it was made of: a
`fingerprint` of the files that were read and of the way they were read. Where that is no longer the run's,
the statistics are of other rows than the run has, and nobody should read them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vsteer.controls import CONTROL_VECTORS
from vsteer.operations import OPERATIONS
from vsteer.store import shards as sh
from vsteer.store.files import disk_errors, write_sealed
from vsteer.store.schema import BOOL, FLOAT, FLOATS, INT, INTS, STRING, STRINGS, Column, arrow_schema
from vsteer.store.sound import faults_of_tables, steadily
from vsteer.store.views import CONFIGS, KL_DOSES, PROMPTS

STATISTICS_FOLDER = "statistics"
METADATA = b"statistics"
# Changes with what the numbers mean or how they are made: statistics of another version are not read.
VERSION = 3
# A vector that exceeds so many control vectors of a kind is outside at the 5% level; fewer allow no claim.
ENOUGH_CONTROLS = 19

MEASURES = ("logit_diff", "p_match")
# By evaluation and config_id a table's row finds its other columns in `conditions`.
_EVALUATION = Column("evaluation", STRING, "the evaluation's name")
_CONFIG = Column("config_id", STRING, "the configuration, in configs.parquet")
_MEASURE = Column("measure", STRING, "what the effect is of", values=MEASURES)
_ITEMS = Column("items", INT, "items that count; both letter orders and all samples of one are one value")
_ITEMS_LEFT_OUT = Column(
    "items_left_out",
    INT,
    "items of the evaluation that don't count: they lack an effect somewhere that is compared",
)
_ROWS_LEFT_OUT = Column(
    "rows_left_out", INT, "planned rows without an effect: missing, failed, not finite, or no baseline"
)
_WHY = Column("why", STRING, "why columns are null, and what to beware of", null="there is nothing to add")
_NORM = Column("norm", STRING, "the norm that was applied to the vector: raw, unit, caa, residual:0.1")
_RELATIVE = Column(
    "relative_norm",
    FLOAT,
    "|multiplier| x the vector's norm / the stream's norm there",
    null="not measured in this model",
)
_BY_VECTOR = (
    Column("vector", STRING, "the vector's name"),
    _NORM,
    Column("positions", STRING, "which tokens are steered: all, after_prompt, ..."),
    Column("operation", STRING, f"what is done to the stream: {', '.join(OPERATIONS)}"),
    Column("system", STRING, "the system prompt's name; empty: none"),
)
_STEERED = (Column("model", STRING, "the model, as the grid names it"), *_BY_VECTOR)
_MULTIPLIER = Column(
    "multiplier", FLOAT, "what the vector is multiplied by", null="an operation that has none"
)
_LEVEL = (
    Column("kl", FLOAT, "the KL divergence that multipliers were found by", null="multipliers were given"),
    Column(
        "level",
        FLOAT,
        "the multiplier that was given, or with kl its sign",
        null="an operation that has none",
    ),
)
_SEED = Column("seed", INT, "the seed of the random draws")
_NO_INTERVAL = "no interval: see why"

INTERVALS = (
    _EVALUATION,
    _CONFIG,
    _MEASURE,
    _ITEMS,
    _ROWS_LEFT_OUT,
    Column("mean", FLOAT, "mean effect over items: steered less unsteered, paired", null="items is 0"),
    Column("low", FLOAT, "lower end of its 95% interval over items", null=_NO_INTERVAL),
    Column("high", FLOAT, "upper end", null=_NO_INTERVAL),
    Column("se", FLOAT, "standard error over items", null="items < 2"),
    Column(
        "p_value",
        FLOAT,
        "paired t-test of the mean against the baseline, two-sided; for this configuration alone, not "
        "corrected for how many there are",
        null="items < 2, or all items are equal",
    ),
    Column("method", STRING, "how the interval was made: bca", null=_NO_INTERVAL),
    _SEED,
    _WHY,
)

PEAKS = (
    _EVALUATION,
    Column("config_id", STRING, "the configuration at the best layer on all items; in configs.parquet"),
    _MEASURE,
    *_STEERED,
    Column(
        "billions", FLOAT, "the model's parameters in billions, as its name says", null="the name doesn't say"
    ),
    _MULTIPLIER,
    *_LEVEL,
    Column(
        "layer",
        INT,
        "the layer of the largest effect in the multiplier's direction, on all items",
        null="items is 0",
    ),
    Column("depth", FLOAT, "(layer + 1) / number of layers", null="items is 0"),
    Column(
        "effect",
        FLOAT,
        "mean effect there: chosen and measured on the same items, so too large",
        null="items is 0",
    ),
    _RELATIVE,
    Column("layers_swept", INT, "how many single layers were compared"),
    _ITEMS,
    _ITEMS_LEFT_OUT,
    Column(
        "heldout_effect",
        FLOAT,
        "mean effect on one half of the items at the layer that the other half chose, over splits, both "
        "halves in turn",
        null="items < 4",
    ),
    Column("low", FLOAT, "lower end of its 95% interval over items", null=_NO_INTERVAL),
    Column("high", FLOAT, "upper end", null=_NO_INTERVAL),
    Column("heldout_layer", INT, "the layer that halves chose most often", null="items < 4"),
    Column("heldout_share", FLOAT, "the share of halves that chose it", null="items < 4"),
    Column(
        "near_layers",
        INTS,
        "layers that can't be told from the best: it doesn't beat them in a one-sided paired t-test at "
        "5% / (layers - 1); the truly best layer is among them in 95% of runs",
        null="items < 2",
    ),
    Column("splits", INT, "how many half-splits were drawn"),
    _SEED,
    _WHY,
)

BANDS = (
    _EVALUATION,
    Column("config_id", STRING, "the peak's configuration: the row of peaks that this belongs to"),
    _MEASURE,
    Column("control", STRING, "which kind of control vectors", values=CONTROL_VECTORS),
    *_STEERED,
    _MULTIPLIER,
    Column("largest", FLOAT, "the vector's effect of largest size over its layers, with its sign"),
    Column("largest_layer", INT, "where"),
    Column("largest_relative_norm", FLOAT, _RELATIVE.about, null=_RELATIVE.null),
    Column("layers_swept", INT, "how many single layers were compared"),
    _ITEMS,
    _ITEMS_LEFT_OUT,
    Column(
        "controls",
        INT,
        "control vectors that count: they have an effect in every row in which the vector has one, at all of "
        "its layers and multipliers, and are stored as vectors of their own",
    ),
    Column("controls_left_out", INT, "control vectors that don't count"),
    Column("control_max", FLOAT, "the largest of their own largest |effect| over layers", null="no control"),
    Column("control_median", FLOAT, "the median of those", null="no control"),
    Column("exceeded_by", INT, "how many controls' largest |effect| is the vector's or more"),
    Column("p_value", FLOAT, "(1 + exceeded_by) / (1 + controls)", null="no control"),
    Column(
        "outside",
        BOOL,
        f"whether the vector exceeds every control: the 5% level with {ENOUGH_CONTROLS}, for this curve "
        "alone",
        null=f"controls < {ENOUGH_CONTROLS}",
    ),
    _WHY,
)

ASYMMETRIES = (
    _EVALUATION,
    Column("config_id", STRING, "the configuration at +multiplier, in configs.parquet"),
    Column("minus_config_id", STRING, "the one at -multiplier"),
    _MEASURE,
    *_STEERED,
    Column("layers", INTS, "the layers that are steered, from 0"),
    Column("multiplier", FLOAT, "|multiplier| of both"),
    _RELATIVE,
    _ITEMS,
    _ITEMS_LEFT_OUT,
    Column(
        "asymmetry",
        FLOAT,
        "-effect at minus - effect at plus, mean over items that have both: above 0 where negative steering "
        "acts more strongly in its own direction",
        null="items is 0",
    ),
    Column("low", FLOAT, "lower end of its 95% interval over items", null=_NO_INTERVAL),
    Column("high", FLOAT, "upper end", null=_NO_INTERVAL),
    Column("se", FLOAT, "standard error over items", null="items < 2"),
    Column("p_value", FLOAT, "paired t-test, two-sided, not corrected", null="items < 2, or all are equal"),
    _SEED,
    _WHY,
)

DOSES = (
    _EVALUATION,
    Column("config_id", STRING, "one configuration of the family, the one of the largest multiplier"),
    _MEASURE,
    *_STEERED,
    Column("layers", INTS, "the layers that are steered, from 0"),
    Column("multipliers", FLOATS, "ascending; 0 is the unsteered model on the same items"),
    Column("means", FLOATS, "logit_diff or p_match at each, mean over items"),
    Column("relative_norms", FLOATS, "relative_norm at each multiplier; null entries: not measured"),
    _ITEMS,
    _ITEMS_LEFT_OUT,
    Column("isotonic", FLOATS, "the nearest curve to means that never turns back", null="points < 3"),
    Column("isotonic_direction", STRING, "which way it goes", null="points < 3",
           values=("rising", "falling")),
    Column("isotonic_r2", FLOAT, "1 - its residual sum of squares / that about the mean; 1: monotone",
           null="points < 3, or all means are equal"),
    Column("fit", STRING, "line: mean = intercept + slope x multiplier, of logit_diff; logistic: mean = "
           "1 / (1 + exp(-(intercept + slope x multiplier))), of p_match", values=("line", "logistic")),
    Column("intercept", FLOAT, "of the fit; logits", null="points < 3, or no fit: see why"),
    Column("slope", FLOAT, "of the fit; logits for each 1 of multiplier", null="where intercept is"),
    Column("slope_low", FLOAT, "lower end of its 95% interval over items", null=_NO_INTERVAL),
    Column("slope_high", FLOAT, "upper end", null=_NO_INTERVAL),
    Column("midpoint", FLOAT, "-intercept / slope: the multiplier of even odds",
           null="no fit, or slope is 0"),
    Column("fit_r2", FLOAT, "1 - the fit's residual sum of squares / that about the mean",
           null="where intercept is, or all means are equal"),
    Column("residual_df", INT, "points less the fit's two parameters"),
    _SEED,
    _WHY,
)  # fmt: skip

FAMILIES = ("exponential", "power", "log_linear")
SCALING = (
    _EVALUATION,
    _MEASURE,
    *_BY_VECTOR,
    Column(
        "multiplier",
        FLOAT,
        "what the vector is multiplied by",
        null="an operation that has none, or each model has its own with the same kl",
    ),
    *_LEVEL,
    Column("family", STRING, "exponential: offset + scale x exp(-rate x billions); power: scale x "
           "billions^-rate; log_linear: offset + scale x ln(billions)", values=FAMILIES),
    Column("models", STRINGS, "the models, by size"),
    Column("billions", FLOATS, "their parameters in billions, as their names say"),
    Column("effects", FLOATS, "their peaks: heldout_effect in peaks, which is what is fitted"),
    Column("depths", FLOATS, "the peaks' depths"),
    Column("relative_norms", FLOATS, "the peaks' relative_norm; entries null: not measured"),
    Column("models_left_out", INT, "models without a held-out peak, or whose name doesn't say its size"),
    Column("points", INT, "how many models are fitted; each counts alike"),
    Column("offset", FLOAT, "of the family", null="no such parameter, or no fit: see why"),
    Column("offset_low", FLOAT, "lower end of its 95% profile interval", null=_NO_INTERVAL),
    Column("offset_high", FLOAT, "upper end", null=_NO_INTERVAL),
    Column("scale", FLOAT, "of the family", null="no fit: see why"),
    Column("scale_low", FLOAT, "lower end", null=_NO_INTERVAL),
    Column("scale_high", FLOAT, "upper end", null=_NO_INTERVAL),
    Column("rate", FLOAT, "of the family", null="no such parameter, or no fit: see why"),
    Column("rate_low", FLOAT, "lower end", null=_NO_INTERVAL),
    Column("rate_high", FLOAT, "upper end", null=_NO_INTERVAL),
    Column("residual_df", INT, "points less the family's parameters; 0: nothing is left to judge it by",
           null="fewer sizes than parameters"),
    Column("rss", FLOAT, "residual sum of squares", null="no fit"),
    Column("aicc", FLOAT, "Akaike's criterion, corrected for few points; less is better",
           null="fewer points than parameters + 3"),
    Column("loo_rmse", FLOAT, "root mean square error of each model predicted from the others",
           null="fewer points than parameters + 2"),
    Column("preferred", BOOL, "whether the data prefer this family to both others",
           null="they can't tell: see why"),
    _WHY,
)  # fmt: skip

TABLES: Mapping[str, Sequence[Column]] = {
    "intervals": INTERVALS,
    "peaks": PEAKS,
    "bands": BANDS,
    "asymmetries": ASYMMETRIES,
    "doses": DOSES,
    "scaling": SCALING,
}


def statistics_path(folder: Path, table: str) -> Path:
    return folder / STATISTICS_FOLDER / f"{table}.parquet"


def fingerprint(folder: Path) -> str:
    """A hash of what statistics are made of: the rows' files, whose names have checksums, and the tables."""
    found = hashlib.sha256(f"statistics {VERSION}".encode())
    shards = steadily(folder, lambda rows: [(one.name, one.stat().st_size) for one in sh.list_shards(rows)])
    found.update(repr(shards).encode())
    with disk_errors(f"reading {folder}"):
        for name in (CONFIGS, PROMPTS, "vectors/norms.parquet", KL_DOSES):
            if (folder / name).is_file():
                with (folder / name).open("rb") as file:
                    found.update(f"\n{name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return found.hexdigest()[:32]


def statistics_are_current(folder: Path) -> bool:
    """Whether every table is there, can be read, and was made of the run as it stands."""
    return why_no_statistics(folder) is None


def why_no_statistics(folder: Path) -> str | None:
    """Why the statistics of a run are not to be used, or None; a damaged table is named."""
    schemas = {
        statistics_path(folder, table): arrow_schema(STATISTICS_FOLDER, columns)
        for table, columns in TABLES.items()
    }
    faults = faults_of_tables(folder, schemas)
    if damaged := {path.name: why for path, why in faults.items() if why}:
        name, why = next(iter(damaged.items()))
        more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        return f"are damaged and are not used ({name}: {why}{more})"
    if not faults:
        return "are not there"
    now = fingerprint(folder)
    if len(faults) < len(schemas) or any(_made_of(path) != now for path in faults):
        return "were not made of the run as it stands and are not used"
    return None


def _made_of(path: Path) -> str:
    try:
        metadata = pq.read_schema(path).metadata or {}
        return str(json.loads(metadata.get(METADATA, b"{}")).get("fingerprint", ""))
    except (OSError, ValueError):  # ArrowInvalid and a JSON fault are ValueErrors
        return ""


def statistics_schema(table: str, about: Mapping[str, Any]) -> pa.Schema:
    schema = arrow_schema(STATISTICS_FOLDER, TABLES[table])
    made = json.dumps({"version": VERSION, **about}, sort_keys=True).encode()
    return schema.with_metadata({**(schema.metadata or {}), METADATA: made})


def make_folder(folder: Path) -> None:
    with disk_errors(f"making {folder / STATISTICS_FOLDER}"):
        (folder / STATISTICS_FOLDER).mkdir(exist_ok=True)


def write_table(
    folder: Path, name: str, records: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> None:
    """Put a table in its place, whole or not at all; `about` has the fingerprint."""
    table = pa.Table.from_pylist([dict(record) for record in records], statistics_schema(name, about))
    write_sealed(statistics_path(folder, name), table)
