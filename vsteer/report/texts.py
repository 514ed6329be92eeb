"""Generated texts to read: a stated sample of whole prompts, each steered text beside the baseline's."""

from __future__ import annotations

import duckdb

from vsteer.report.tables import Table, table

MOST_TEXTS = 4_000
MOST_CHARACTERS = 1_500_000
# The most characters of one text.
LONGEST = 2_000

CHOSEN = "kind = 'open_ended' and status = 'ok' and control in ('', 'system')"
PROMPTS = f"""
select run, prompt_id, count(*), sum(least(length(text), {LONGEST}))
from rows where {CHOSEN} and sample = 0
group by run, prompt_id order by md5(prompt_id), prompt_id, run
"""
# The first prompts in an order that has nothing to do with their content; baselines come first, as they are
# needed where the table is cut.
TEXTS = f"""
select r.row_id, r.run, r.model, r.evaluation, r.system, r.vector, r.norm, r.positions, r.layers,
       r.multiplier, r.config_id, c.baseline_id, r.prompt_id, left(r.text, {LONGEST}) as text,
       greatest(length(r.text) - {LONGEST}, 0) as cut, r.finish_reason, r.steered_tokens
from rows r
join conditions c on c.run = r.run and c.evaluation = r.evaluation and c.config_id = r.config_id
where r.{CHOSEN.replace(" and ", " and r.")} and r.sample = 0
  and r.prompt_id in (select unnest($prompts))
order by r.vector <> '', md5(r.prompt_id), r.prompt_id, r.run, r.vector, r.norm, r.positions, r.layers,
         r.multiplier
limit {MOST_TEXTS}
"""
QUESTIONS = """
select run, prompt_id, question, category, system from prompts
where prompt_id in (select unnest($prompts)) order by md5(prompt_id), prompt_id, run
"""
# One version of each scorer: the last by its hash.
SCORES = """
select s.run, s.row_id, s.name, s.value, s.note, s.scorer, s.scorer_hash
from scores s
join rows r on r.run = s.run and r.row_id = s.row_id
where r.kind = 'open_ended' and s.row_id in (select unnest($rows))
qualify s.scorer_hash = max(s.scorer_hash) over (partition by s.name)
order by s.name, s.row_id
"""


def texts(database: duckdb.DuckDBPyConnection) -> dict[str, Table]:
    """`texts`, `questions` and `scores` of a sample; the note of `texts` says how it was chosen."""
    found = database.execute(PROMPTS).fetchall()
    prompts: list[str] = []
    taken = characters = 0
    for _, prompt_id, count, length in found:
        full = taken + count > MOST_TEXTS or characters + length > MOST_CHARACTERS
        if prompts and full and prompt_id not in prompts:
            break
        prompts.append(prompt_id)
        taken, characters = taken + count, characters + length
    chosen = list(dict.fromkeys(prompts))
    (everything,) = database.execute(
        "select count(*) from rows where kind = 'open_ended' and status = 'ok'"
    ).fetchone() or (0,)
    of_prompts = len({prompt_id for _, prompt_id, _, _ in found})
    read = table(database, TEXTS.strip(), {"prompts": chosen})
    note = (
        f"{len(read):,} of {everything:,} texts: {len(chosen):,} of {of_prompts:,} prompts, in the order of"
        f" their ids' hashes; the first sample of each, without control vectors"
    )
    if len(read) < taken:
        note += f"; cut at {MOST_TEXTS:,} texts"
    shown = Table(read.columns, read.sql, note=note if everything else "")
    return {
        "texts": shown,
        "questions": table(database, QUESTIONS.strip(), {"prompts": chosen}),
        "scores": table(database, SCORES.strip(), {"rows": shown.columns["row_id"]}),
    }
