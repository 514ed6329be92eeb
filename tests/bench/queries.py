"""How many seconds on two cores, and how much memory, each of `queries/` takes on a large compacted run.

DuckDB makes up the rows, and they are written as a compaction writes them. A third of them have the vectors
themselves, the rest controls: 4 vectors, 40 layers, 8 multipliers, 2 system prompts, both letter orders. One
vector meets MMLU too and texts, which are scored; one was made at a single layer, and one from another model;
some rows failed. So every query has something to answer.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import duckdb
import pyarrow as pa

from vsteer.analysis.statistics import write_statistics
from vsteer.bench.figures import Figure
from vsteer.results.queries import queries
from vsteer.results.views import NORMS
from vsteer.store import shards as sh
from vsteer.store.compaction import BATCH, ORDER, ROW_GROUP
from vsteer.store.cosines import COSINES_FILE, COSINES_SCHEMA
from vsteer.store.database import in_memory, quoted
from vsteer.store.files import parquet_writer
from vsteer.store.schema import CONFIGS_SCHEMA, NORMS_SCHEMA, PROMPTS_SCHEMA, ROWS_SCHEMA
from vsteer.store.scores import SCORES_FOLDER, schema_of, scores_path
from vsteer.store.views import CONFIGS, PROMPTS

VECTORS, LAYERS, MULTIPLIERS, SYSTEMS = 4, 40, (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0), ("", "positive")
CONTROLS = ("", "random", "shuffled")
SECONDS, MIB = 2.0, 2048
STEERED = VECTORS * LAYERS * len(MULTIPLIERS) * len(SYSTEMS) * len(CONTROLS)
# How many configurations meet MMLU and texts, baselines included: one vector under no system prompt.
BESIDE = LAYERS * len(MULTIPLIERS) + 1
ITEMS_A_TEXT = 4
# any hash of a scorer
HASH = "0123456789ab"

# Each query has a process of its own, and so its own peak of memory. All that is done to the run counts:
# making the views with their tables of conditions and baselines, and the answer, until all of it stands in
# memory as columns. Imports before it and printing after it do not count. Where the machine does other
# things too, the processors' seconds say what the query took: two cores need half of them at least.
ASK = """
import re, sys, time
from pathlib import Path
import duckdb, pyarrow
from vsteer.results.queries import query
from vsteer.results.views import connect_runs
began, idle = time.perf_counter(), time.process_time()
database = connect_runs([Path(sys.argv[1])])
database.execute("set threads = 2")
made = time.perf_counter()
rows = len(database.sql(query(sys.argv[2]).sql).to_arrow_table())
ended, used = time.perf_counter(), time.process_time() - idle
# getrusage's peak would begin with what the parent had when it forked.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(made - began, ended - made, used, rows, int(peak) / 1024)
"""


def bench_queries(rows: int = 10_000_000) -> list[Figure]:
    """Measure every query on a made-up run of about so many rows."""
    with tempfile.TemporaryDirectory(prefix="vsteer-bench-") as name:
        folder = Path(name) / "run"
        written = make_run(folder, rows)
        write_statistics(folder)
        return [Figure("rows", written), *measure_all(folder)]


def bench_live(rows: int = 10_000_000) -> list[Figure]:
    """Measure a query on the same rows compacted and as they stand while a run goes on, in 1,000 shards."""
    with tempfile.TemporaryDirectory(prefix="vsteer-bench-") as name:
        compact, live = Path(name) / "compact", Path(name) / "live"
        make_run(compact, rows)
        make_run(live, rows, rows // 1000)
        # the first time each shard is verified
        first = _ask(live, "layer_peaks")
        (_, _, of_compact, _, _), again = _ask(compact, "layer_peaks"), _ask(live, "layer_peaks")
    note = f"{again[2]:.2f} s of processors, {first[2]:.2f} s the first time, {of_compact:.2f} s compacted"
    return [
        Figure("layer_peaks, times the compacted time left of 2", 2 - again[2] / of_compact, 0, note=note),
        Figure("layer_peaks MiB left of 1500", 1500 - max(first[4], again[4]), target=0),
    ]


def _ask(folder: Path, name: str) -> tuple[float, ...]:
    command = [sys.executable, "-c", ASK, str(folder), name]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return tuple(map(float, printed.split()))


def measure_all(folder: Path) -> list[Figure]:
    figures = []
    for name in queries():
        views, answer, used, found, peak = _ask(folder, name)
        seconds = views + answer
        note = (
            f"{seconds:.2f} s ({used:.2f} s of processors), {views:.2f} of it making the views;"
            f" {found:.0f} rows, {peak:.0f} MiB"
        )
        figures += [
            Figure(f"{name} seconds left of {SECONDS:g}", SECONDS - seconds, target=0, note=note),
            Figure(f"{name} MiB left of {MIB}", MIB - peak, target=0),
        ]
    return figures


def make_run(folder: Path, rows: int, shard: int | None = None) -> int:
    """Make a run's folder without a manifest; return the number of its rows.

    It is compacted, or as a run writes it, prompt by prompt in shards of so many rows.
    """
    items = max(2, round(rows / (2 * (STEERED + len(SYSTEMS)) + BESIDE + BESIDE / ITEMS_A_TEXT)))
    (folder / sh.ROWS_FOLDER).mkdir(parents=True)
    with in_memory(memory_limit="4GB", temp_directory=str(folder / "scratch")) as database:
        for statement in MADE_UP.format(items=items, texts=max(1, round(items / ITEMS_A_TEXT))).split(";"):
            database.execute(statement)
        _write(database, folder / CONFIGS, "configs", CONFIGS_SCHEMA)
        _write(database, folder / PROMPTS, "prompts", PROMPTS_SCHEMA)
        (folder / SCORES_FOLDER).mkdir()
        for scorer in ("perplexity", "refusal"):
            made = f"(from scores where scorer = {quoted(scorer)})"
            _write(database, scores_path(folder, scorer, HASH), made, schema_of(HASH, {}))
        (folder / NORMS).parent.mkdir()
        _write(database, folder / NORMS, "norms", NORMS_SCHEMA)
        _write(database, folder / COSINES_FILE, "cosines", COSINES_SCHEMA)
        if shard:
            return _write_shards(database, folder / sh.ROWS_FOLDER, shard)
        file = folder / sh.ROWS_FOLDER / "rows"
        written = _write(database, file, f"(from rows order by {ORDER})", ROWS_SCHEMA, ROW_GROUP)
        file.rename(file.with_name(sh.shard_name("compact", 1, sh.crc_of(file))))
        return written


def _write_shards(database: duckdb.DuckDBPyConnection, folder: Path, shard: int) -> int:
    count = 0
    in_order = database.sql(
        f"select {', '.join(ROWS_SCHEMA.names)} from rows"
        " order by evaluation, prompt_id, vector <> '', vector, layer, multiplier, control"
    )
    for number, batch in enumerate(in_order.to_arrow_reader(shard), 1):
        content = sh.shard_content(pa.Table.from_batches([batch]).cast(ROWS_SCHEMA))
        name = sh.shard_name("part", number, zlib.crc32(content))
        (folder / name).write_bytes(content)
        count += len(batch)
    return count


def _write(
    database: duckdb.DuckDBPyConnection, path: Path, source: str, schema: pa.Schema, group: int | None = None
) -> int:
    count = 0
    reader = database.sql(f"select {', '.join(schema.names)} from {source}").to_arrow_reader(6 * BATCH)
    with parquet_writer(path, schema) as writer:
        for batch in reader:
            writer.write_table(pa.Table.from_batches([batch]).cast(schema), row_group_size=group)
            count += len(batch)
    return count


MADE_UP = (
    """
create table configs as
with cells as (
    select 'choice:refusal' as evaluation, 'choice' as kind, 'refusal' || v as vector, control, layer,
           multiplier, system
    from range({vectors}) a(v), unnest({controls}) b(control), range({layers}) c(layer),
         unnest({multipliers}) d(multiplier), unnest({systems}) e(system)
    union all
    select evaluation, split_part(evaluation, ':', 1), 'refusal0', '', layer, multiplier, ''
    from unnest(['choice:mmlu', 'open_ended:refusal']) a(evaluation), range({layers}) c(layer),
         unnest({multipliers}) d(multiplier)
    union all select 'choice:refusal', 'choice', '', '', null, 0.0, system from unnest({systems}) e(system)
    union all select evaluation, split_part(evaluation, ':', 1), '', '', null, 0.0, ''
    from unnest(['choice:mmlu', 'open_ended:refusal']) a(evaluation)
)
select md5(kind || vector || control || coalesce(layer, -1) || multiplier || system) as config_id,
       evaluation, kind, 'meta-llama/Llama-2-7b-chat-hf' as model, vector,
       case vector when '' then '' else sha256(vector || control) end as vector_sha256,
       case vector when '' then '' else 'residual:0.1' end as norm, control,
       case control when '' then null else 0 end as control_index,
       -- the layers of one vector say on which condition they steer
       vector = 'refusal0' and multiplier = 2 and evaluation <> 'open_ended:refusal' as conditional,
       case when conditional then 'refusal0' end as when_vector,
       case when conditional then layer end as when_layer,
       case when conditional then 'mean' end as when_token,
       case when conditional then 'above' end as when_side,
       case when conditional then 0.1::double end as when_threshold,
       case when layer is null then []::int[] else [layer] end as layers, layer,
       (layer + 1) / {layers} as depth, case vector when '' then '' else 'add' end as operation, multiplier,
       case vector when '' then '' else 'after_prompt' end as positions, system, '0123abcd' as model_commit,
       'bfloat16' as dtype, '' as quantization, 'auto' as kv_cache_dtype, 'chat' as template,
       system as system_prompt, case kind when 'choice' then ' (' else '' end as forced_prefix,
       vector || control as vector_recipe, case kind when 'choice' then 1 else 100 end as max_tokens,
       0.0 as temperature, 1.0 as top_p, 0 as seed,
       case evaluation when 'choice:refusal' then 2 * {{items}} when 'choice:mmlu' then {{items}}
           else {{texts}} end as rows
from cells;
create table norms as
select distinct vector || control || '.safetensors' as file, vector_sha256, layer,
       2.0 + layer / 10 as vector_norm, 20.0 + layer as stream_norm,
       case vector when 'refusal2' then 'meta-llama/Llama-2-13b-chat-hf' else model end as made_in_model,
       case vector when 'refusal2' then '4567' else model_commit end as made_in_revision,
       '' as made_in_sha256, case vector when 'refusal1' then 16 end::int as made_at_layer, '' as derived
from configs where vector <> '';
create table prompts as
with asked as (
    select 'choice:refusal' as evaluation, 'choice' as kind, item, letter_order, system,
           ['A', 'B'] as choices, (item + (letter_order = 'swapped')::int) % 2 as matching
    from range({{items}}) a(item), unnest(['original', 'swapped']) b(letter_order),
         unnest({systems}) c(system)
    union all
    select 'choice:mmlu', 'choice', item, 'original', '', ['A', 'B', 'C', 'D'], item % 4
    from range({{items}}) a(item)
    union all
    select 'open_ended:refusal', 'open_ended', item, 'original', '', null, null from range({{texts}}) a(item)
)
select md5(evaluation || item || letter_order || system) as prompt_id,
       md5(evaluation || item || letter_order) as item_id, evaluation, kind,
       split_part(evaluation, ':', 2) as data, sha256(evaluation) as data_sha256, '' as category,
       letter_order,
       case letter_order when 'original' then '' else md5(evaluation || item || 'original') end
           as swapped_from,
       system, 'Question ' || item as question, 'Question ' || item as prompt,
       [1, 2, 3] as token_ids, 129 as prompt_tokens, choices, matching, item
from asked;
create table cosines as
select c.model, c.model_commit, c.dtype, c.quantization, c.kv_cache_dtype, '' as model_identity,
       c.when_vector as vector, c.vector_sha256, c.when_layer as layer, c.when_token as token, p.prompt_id,
       129 as tokens, sin(p.item * 7 + c.layer) / 2 + (p.evaluation = 'choice:mmlu')::int / 4 as cosine,
       'vllm' as engine, '0.32.0' as vllm_version, 1 as run_session
from (select distinct * exclude (config_id, evaluation, kind, system, system_prompt, rows, forced_prefix)
      from configs where when_vector is not null and control = '') c
join prompts p on p.kind = 'choice';
create view rows as
with asked as (
    select c.* exclude (rows, seed), p.prompt_id, p.item_id, p.letter_order, p.choices as asked_choices,
           p.matching as asked_matching, p.item,
           1 + sin(item) + multiplier * exp(0 - ((coalesce(layer, 0) - 16) / 6) ** 2) * (control = '')::int
           + 0.1 * sin(item * coalesce(layer, 0) + multiplier) as difference,
           hash(config_id, prompt_id) as luck,
           case when luck % 100003 = 0 or (vector = '' and system = 'positive' and item = 1) then 'error'
                else 'ok' end as status,
           c.kind = 'choice' and status = 'ok' as answered, c.kind <> 'choice' and status = 'ok' as written
    from configs c join prompts p using (evaluation, system)
)
select *, md5(config_id || prompt_id) as row_id, 0 as sample,
       case status when 'error' then 'the engine died after ' || item || ' rows' end as error,
       case when written then repeat('Once upon a time there was a model that was steered. ', 8) end as text,
       case when written then range(100)::int[] end as token_ids,
       case when written then 'length' end as finish_reason,
       case when answered then asked_choices end as choices,
       case when answered then list_transform(asked_choices, lambda c, n:
           case when n = asked_matching + 1 then difference - 2 else -2.0 - n / 8 end) end as choice_logprobs,
       case when answered then list_transform(asked_choices, lambda c: 1) end as choice_tokens,
       case when answered then asked_matching end as matching,
       case when answered then 0.4 + 0.5 * (luck % 1000) / 1000 end as total_mass,
       case when answered then 1 / (1 + exp(-difference)) end as p_match,
       case when answered then difference end as logit_diff, 129 as prompt_tokens,
       case when written then 100 when answered then 1 end as completion_tokens,
       case status when 'ok' then 96 end as cached_tokens,
       case status when 'ok' then (vector <> '')::int end as steered_tokens,
       case when conditional then true end as condition_met,
       timestamp '2026-11-21 08:30:00' + to_milliseconds(item) as started_at,
       timestamp '2026-11-21 08:30:01' + to_milliseconds(item) as finished_at, 1 as attempt, 'vllm' as engine,
       '0.32.0' as vllm_version, vector_sha256 as vector_file_sha256, 1 as run_session
from asked;
create view scores as
select row_id, finished_at as row_finished_at, scorer, '{hash}' as scorer_hash, scorer as name,
       case scorer when 'refusal' then luck % 2 else 5 + abs(multiplier) + luck % 100 / 50 end as value,
       null as note
from rows, unnest(['perplexity', 'refusal']) s(scorer) where kind = 'open_ended' and status = 'ok'
""".replace("{vectors}", str(VECTORS))
    .replace("{layers}", str(LAYERS))
    .replace("{controls}", str(list(CONTROLS)))
    .replace("{systems}", str(list(SYSTEMS)))
    .replace("{multipliers}", str(list(MULTIPLIERS)))
    .replace("{hash}", HASH)
    .replace("{{items}}", "{items}")
    .replace("{{texts}}", "{texts}")
)
