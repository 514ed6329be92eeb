"""Whether a run is whole: every planned row once, no other, every file readable, all made alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from vsteer.files import TEMPORARY
from vsteer.store import schema as s
from vsteer.store import shards as sh
from vsteer.store.database import file_list, in_memory, quoted
from vsteer.store.manifest import DamagedManifest, Manifest, read_manifest
from vsteer.store.planned import Planned, Standing, read_standing
from vsteer.store.schema import FORKS
from vsteer.store.seal import broken
from vsteer.store.sound import fault_of_table, require_run, steadily
from vsteer.store.views import CONFIGS, PROMPTS, lacking_sql, read_rows

EXAMPLES = 5
TABLES = {CONFIGS: s.CONFIGS_SCHEMA, PROMPTS: s.PROMPTS_SCHEMA}
DERIVED, ENDINGS = ("vectors", "scores", "statistics"), (".parquet", ".safetensors")
KEYS = {CONFIGS: "config_id", PROMPTS: "prompt_id"}


@dataclass(frozen=True)
class Finding:
    """Something about a run that isn't as it should be, or that its user should know."""

    what: str  # a word to sort findings by: missing, unplanned, errors, unreadable, ...
    count: int
    message: str
    fault: bool = True  # False: the run is whole all the same
    examples: tuple[str, ...] = ()


def check(folder: Path, planned: Planned) -> list[Finding]:
    """Hold a run's folder against its plan; usable while the run goes on.

    A run without a fault among its findings is whole.
    """
    findings = []
    try:
        manifest = read_manifest(require_run(folder))
    except DamagedManifest as error:
        manifest = None
        findings.append(Finding("damaged_manifest", 1, error.message))
    if manifest is None and not findings:
        findings.append(Finding("no_manifest", 1, f"{folder} has no manifest: its plan was never written"))
    elif manifest is not None and manifest["rows"] != len(planned):
        message = f"the manifest plans {manifest['rows']} rows, and {len(planned)} were given to check"
        findings.append(Finding("plan_differs", abs(manifest["rows"] - len(planned)), message))
    tables = {folder / name: _table_fault(folder / name, schema, manifest) for name, schema in TABLES.items()}
    if faults := [f"{table.name}: {why}" for table, why in tables.items() if why]:
        findings.append(_named("unreadable_tables", faults, f"tables in {folder} can't be used"))
    sound = [table for table, why in tables.items() if not why]
    findings += steadily(folder, lambda rows: _rows_findings(rows, planned, sound))
    findings += _derived_findings(folder)
    aside = folder / sh.SET_ASIDE
    if aside.is_dir():
        names = sorted(path.name for path in aside.iterdir())
        for what, found, message in (
            ("set_aside", False, "were set aside; rows that only they had are missing or computed anew"),
            ("no_longer_planned", True, "hold rows that a changed grid no longer plans"),
        ):
            if some := [name for name in names if sh.is_unplanned(name) == found]:
                findings.append(replace(_named(what, some, f"files in {aside} {message}"), fault=False))
    return findings


def _table_fault(path: Path, schema: pa.Schema, manifest: Manifest | None) -> str | None:
    count = (manifest or {}).get(path.stem)
    try:
        if (path.exists() or path.is_symlink()) and (why := fault_of_table(path)):
            return why
        table = pq.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        return "it is not there"
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"it can't be read: {str(error).splitlines()[0][:120]}"
    if not table.schema.equals(s.as_written(schema, table.schema.names)):
        return "it has other columns than it should"
    if manifest is not None and len(table) != count:
        return f"it has {len(table)} lines, and the manifest says {count}"
    return None


def _derived_findings(folder: Path) -> list[Finding]:
    """Damaged vectors and tables: rows are whole without them, and most can be made again."""
    derived = sorted(path for sub in DERIVED for path in (folder / sub).glob("*") if path.suffix in ENDINGS)
    faults = [
        f"{path.relative_to(folder)}: {why}"
        for path in derived
        if (why := fault_of_table(path) if path.suffix == ".parquet" else _vector_fault(path))
    ]
    message = f"derived files in {folder} are damaged: `vsteer run`, `stats` and `score` make them anew"
    return [replace(_named("damaged", faults, message), fault=False)] if faults else []


def _vector_fault(path: Path) -> str | None:
    if not path.is_file():
        return "it is no file"
    return "its checksum is another's" if broken(path) else None


def _rows_findings(rows: Path, planned: Planned, tables: Sequence[Path]) -> list[Finding]:
    findings = []
    names = sorted(path.name for path in rows.iterdir())
    if strange := [name for name in names if not sh.NAME.fullmatch(name) and not name.endswith(TEMPORARY)]:
        findings.append(_named("foreign", strange, f"files in {rows} are not vsteer's"))
    faults = {shard: sh.fault_of(shard) for shard in sh.list_shards(rows)}
    if bad := [f"{shard.name}: {why}" for shard, why in faults.items() if why]:
        findings.append(_named("unreadable", bad, f"shards in {rows} can't be read"))
    shards = [shard for shard, why in faults.items() if not why]
    standing = read_standing(shards, planned)
    missing = len(planned) - standing.count
    for what, count, message in (
        ("missing", missing, "planned rows are not there"),
        ("unplanned", len(standing.unplanned), "rows are not in the plan"),
        ("errors", len(standing.failed), "rows failed at every attempt"),
    ):
        if count:
            findings.append(Finding(what, count, message, examples=_examples(what, standing, planned)))
    findings += _doubled(shards, standing.count + len(standing.unplanned))
    return findings + _related(shards, tables)


def _examples(what: str, standing: Standing, planned: Planned) -> tuple[str, ...]:
    """Some of these rows, by their ids."""
    if what == "unplanned":
        return tuple(islice(standing.unplanned, EXAMPLES))
    places = standing.failed if what == "errors" else standing.missing(EXAMPLES)
    return tuple(planned.row_id(int(place)) for place in places[:EXAMPLES])


def _named(what: str, names: Sequence[str], message: str) -> Finding:
    return Finding(what, len(names), message, examples=tuple(names[:EXAMPLES]))


def _doubled(shards: Sequence[Path], standing: int) -> list[Finding]:
    more = sh.row_count(shards) - standing
    if not more:
        return []
    if sh.is_compact(shards):
        return [Finding("doubled", more, "rows stand more than once in the compacted file")]
    message = "attempts were followed by another of the same row, which counts; compaction drops them"
    return [Finding("superseded", more, message, fault=False)]


def _related(shards: Sequence[Path], tables: Sequence[Path]) -> list[Finding]:
    if not sh.row_count(shards):
        return []
    rows = read_rows(shards)
    findings = []
    with in_memory() as database:
        for table in tables:
            # These are rows whose configuration or prompt nobody can look up.
            key, known = KEYS[table.name], f"read_parquet({file_list([table])})"
            query = f"select {key} from {rows} except select {key} from {known} order by {key}"
            if lost := _column(database, query):
                findings.append(_named(f"unknown_{key}", lost, f"{key}s of rows are not in {table.name}"))
            if table.name == CONFIGS:
                findings += _conditions(database, rows, table)
        return findings + _mixed(database, rows)


def _conditions(database: duckdb.DuckDBPyConnection, rows: str, configs: Path) -> list[Finding]:
    """Rows that don't say whether their configuration's condition holds, or say so without one."""
    lacks = lacking_sql(configs, s.CONFIGS_SCHEMA)
    known = f"select *{lacks} from read_parquet({file_list([configs])})"
    conditional = f"(select config_id from ({known}) where when_vector is not null)"
    wrong = _column(
        database,
        f"select row_id from {rows} semi join {conditional} using (config_id)"
        " where status = 'ok' and condition_met is null"
        f" union select row_id from {rows} anti join {conditional} using (config_id)"
        " where condition_met is not null order by row_id",
    )
    message = "rows contradict their configuration's condition"
    return [_named("wrong_conditions", wrong, message)] if wrong else []


def _mixed(database: duckdb.DuckDBPyConnection, rows: str) -> list[Finding]:
    """Findings of rows that were made differently, as after an upgrade between two starts."""
    findings = []
    # what computes rows in two ways is one engine
    engine = f"replace(engine, {quoted(FORKS)}, '')"
    engines = _column(
        database, f"select distinct trim({engine} || ' ' || vllm_version) as e from {rows} order by e"
    )
    if len(engines) > 1:
        findings.append(_named("mixed_engines", engines, "engines computed the rows"))
    vectors = _column(
        database,
        f"select distinct vector as v from {rows} group by model, vector, norm, control, control_index"
        " having count(distinct vector_file_sha256) > 1 order by v",
    )
    if vectors:
        findings.append(_named("mixed_vectors", vectors, "vectors were read from more than one file each"))
    return [replace(finding, fault=False) for finding in findings]


def _column(database: duckdb.DuckDBPyConnection, query: str) -> list[str]:
    return [value for (value,) in database.sql(query).fetchall()]
