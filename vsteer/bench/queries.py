"""What the files in `queries/` take on a large compacted run: seconds on two cores, and memory.

The rows are made up by DuckDB and written as a compaction writes them. A third of them are the vectors' own,
the rest controls: 4 vectors, 40 layers, 8 multipliers, 2 system prompts, both letter orders.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb

from vsteer.bench.figures import Figure
from vsteer.store import shards as sh
from vsteer.store.compaction import BATCH, ORDER, ROW_GROUP
from vsteer.store.files import parquet_writer
from vsteer.store.schema import CONFIGS_SCHEMA, PROMPTS_SCHEMA, ROWS_SCHEMA
from vsteer.store.views import CONFIGS, PROMPTS

VECTORS, LAYERS, MULTIPLIERS, SYSTEMS = 4, 40, (-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0), ("", "positive")
CONTROLS = ("", "random", "shuffled")
SECONDS, MIB = 2.0, 2048
STEERED = VECTORS * LAYERS * len(MULTIPLIERS) * len(SYSTEMS) * len(CONTROLS)

# One process a query, so that each has its own peak of memory. The views are made first: a shell has them.
ASK = """
import re, sys, time
from pathlib import Path
from vsteer.store.questions import query
from vsteer.store.questions_views import connect_runs
began = time.perf_counter()
database = connect_runs([Path(sys.argv[1])])
database.execute("set threads = 2")
made = time.perf_counter()
sql = query(sys.argv[2]).sql
rows = len(database.execute(sql).fetchall())
first = time.perf_counter() - made
# not getrusage's: that one begins with what the parent had when it forked
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(made - began, first, rows, int(peak) / 1024)
"""


def bench_queries(rows: int = 10_000_000) -> list[Figure]:
    """Ask every query of a made-up run of about so many rows."""
    from vsteer.store.questions import queries

    with tempfile.TemporaryDirectory(prefix="vsteer-bench-") as name:
        folder = Path(name) / "run"
        written = make_run(folder, rows)
        figures = [Figure("rows", written)]
        for asked in queries():
            command = [sys.executable, "-c", ASK, str(folder), asked]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            views, seconds, found, peak = map(float, said)
            note = f"{seconds:.2f} s, {found:.0f} rows, {peak:.0f} MiB, views {views:.2f} s"
            figures += [
                Figure(f"{asked} seconds left of {SECONDS:g}", SECONDS - seconds, target=0, note=note),
                Figure(f"{asked} MiB left of {MIB}", MIB - peak, target=0),
            ]
    return figures


def make_run(folder: Path, rows: int) -> int:
    """A run's folder without a manifest; the number of its rows."""
    items = max(2, round(rows / (STEERED + len(SYSTEMS)) / 2))
    (folder / sh.ROWS_FOLDER).mkdir(parents=True)
    with duckdb.connect(
        config={"memory_limit": "4GB", "temp_directory": str(folder / "scratch")}
    ) as database:
        database.execute("set enable_progress_bar = false")
        for statement in MADE_UP.format(items=items).split(";"):
            database.execute(statement)
        columns = ", ".join(ROWS_SCHEMA.names)
        for name, schema in ((CONFIGS, CONFIGS_SCHEMA), (PROMPTS, PROMPTS_SCHEMA)):
            table = database.sql(f"select {', '.join(schema.names)} from {Path(name).stem}").to_arrow_table()
            with parquet_writer(folder / name, schema) as writer:
                writer.write_table(table.cast(schema))
        file = folder / sh.ROWS_FOLDER / sh.shard_name("compact", 1, 0)
        reader = database.sql(f"select {columns} from rows order by {ORDER}").to_arrow_reader(6 * BATCH)
        count = 0
        with parquet_writer(file, ROWS_SCHEMA) as writer:
            for batch in reader:
                table = type(table).from_batches([batch]).cast(ROWS_SCHEMA)
                writer.write_table(table, row_group_size=ROW_GROUP)
                count += len(table)
        return count


MADE_UP = (
    """
create table configs as
with cells as (
    select 'refusal' || v as vector, control, layer, multiplier, system
    from range({vectors}) a(v), unnest({controls}) b(control), range({layers}) c(layer),
         unnest({multipliers}) d(multiplier), unnest({systems}) e(system)
    union all select '', '', null, 0.0, system from unnest({systems}) e(system)
)
select md5(vector || control || coalesce(layer, -1) || multiplier || system) as config_id,
       'choice:refusal' as evaluation, 'choice' as kind, 'meta-llama/Llama-2-7b-chat-hf' as model, vector,
       case vector when '' then '' else sha256(vector || control) end as vector_sha256,
       case vector when '' then '' else 'residual:0.1' end as norm, control,
       case control when '' then null else 0 end as control_index,
       case when layer is null then []::int[] else [layer] end as layers, layer,
       (layer + 1) / {layers} as depth, case vector when '' then '' else 'add' end as operation, multiplier,
       case vector when '' then '' else 'after_prompt' end as positions, system, '0123abcd' as model_commit,
       'bfloat16' as dtype, '' as quantization, 'auto' as kv_cache_dtype, 'chat' as template,
       system as system_prompt, ' (' as forced_prefix, vector || control as vector_recipe, 1 as max_tokens,
       0.0 as temperature, 1.0 as top_p, 0 as seed, 2 * {{items}} as rows
from cells;
create table prompts as
select md5(item || letter_order || system) as prompt_id, md5(item || letter_order) as item_id,
       'choice:refusal' as evaluation, 'choice' as kind, 'refusal' as data, sha256('refusal') as data_sha256,
       '' as category, letter_order,
       case letter_order when 'original' then '' else md5(item || 'original') end as swapped_from,
       system, 'Question ' || item as question, 'Question ' || item as prompt,
       [1, 2, 3] as token_ids, 129 as prompt_tokens, ['A', 'B'] as choices,
       (item + (letter_order = 'swapped')::int) % 2 as matching, item
from range({{items}}) a(item), unnest(['original', 'swapped']) b(letter_order), unnest({systems}) c(system);
create view rows as
with asked as (
    select c.* exclude (rows, seed), p.prompt_id, p.item_id, p.letter_order, p.choices, p.matching, p.item,
           1 + sin(item) + multiplier * exp(0 - ((coalesce(layer, 0) - 16) / 6) ** 2) * (control = '')::int
           + 0.1 * sin(item * coalesce(layer, 0) + multiplier) as logit_diff,
           0.4 + 0.5 * (hash(config_id, prompt_id) % 1000) / 1000 as total_mass
    from configs c join prompts p using (system)
)
select *, md5(config_id || prompt_id) as row_id, 0 as sample, 'ok' as status, null as error, null as text,
       null as token_ids, 'length' as finish_reason, [logit_diff - 2, -2.0] as choice_logprobs,
       [1, 1] as choice_tokens, 1 / (1 + exp(-logit_diff)) as p_match, 129 as prompt_tokens,
       1 as completion_tokens, 96 as cached_tokens, (vector <> '')::int as steered_tokens,
       timestamp '2026-11-21 08:30:00' + to_milliseconds(item) as started_at,
       timestamp '2026-11-21 08:30:01' + to_milliseconds(item) as finished_at, 1 as attempt, 'vllm' as engine,
       '0.32.0' as vllm_version, vector_sha256 as vector_file_sha256, 1 as run_session
from asked
""".replace("{vectors}", str(VECTORS))
    .replace("{layers}", str(LAYERS))
    .replace("{controls}", str(list(CONTROLS)))
    .replace("{systems}", str(list(SYSTEMS)))
    .replace("{multipliers}", str(list(MULTIPLIERS)))
    .replace("{{items}}", "{items}")
)
