-- Which rows are not what was planned, and why?
--
-- Parameters: none. Empty where all is well.
-- Columns:
--   problem    error: the row failed; missing: it is planned and not there; not planned: there are more rows
--              than planned; steered nothing: the row is good and has a vector, yet no position was steered, and
--              not because its condition on the prompt doesn't hold;
--              nothing to compare with: it is good and steered, but the baseline on its prompt failed or is
--              missing, so no effect counts it; not finite: its logit difference is infinite, so no mean counts it
--   what       the error with its numbers as #, so that similar ones are one row
--   rows       how many; share is their share of the rows planned for the same model and evaluation
--   configs    in how many configurations; example: one row's id
-- Caveat: while a run goes on, rows that are still to come are missing. A row that failed and succeeded when it
--   was tried again is no failure. `vsteer check GRID` compares every row's id with the plan; this only counts.
with planned as (
    select run, model, evaluation, sum(rows) as planned from conditions group by all
),
found as (
    select c.condition, c.run, c.model, c.evaluation, c.rows as planned, coalesce(r.there, 0) as there
    from conditions c
    left join (select run, evaluation, config_id, count(*) as there from rows group by all) r
           on r.run = c.run and r.evaluation = c.evaluation and r.config_id = c.config_id
),
unpaired as materialized (
    select b.run, b.evaluation, b.config_id as baseline_id, p.prompt_id
    from conditions b
    join (select distinct run, evaluation, system, prompt_id from prompts where kind = 'choice') p
      on p.run = b.run and p.evaluation = b.evaluation and p.system = b.system
    anti join baselines d on d.run = b.run and d.evaluation = b.evaluation and d.baseline_id = b.config_id
                         and d.prompt_id = p.prompt_id
    where b.vector = '' and b.kind = 'choice'
),
-- in two steps, since DuckDB would otherwise take the rows for the smaller side of the join
suspects as materialized (
    select run, model, evaluation, config_id, row_id, prompt_id from rows
    where status = 'ok' and vector <> '' and kind = 'choice'
      and prompt_id in (select prompt_id from unpaired)
),
problems as (
    select run, model, evaluation, 'error' as problem,
           regexp_replace(split_part(error, chr(10), 1), '[0-9]+', '#', 'g') as what, count(*) as rows,
           count(distinct config_id) as configs, min(row_id) as example
    from rows where status <> 'ok' group by all
    union all by name
    select run, model, evaluation, case when there < planned then 'missing' else 'not planned' end as problem,
           '' as what, sum(abs(planned - there)) as rows, count(*) as configs, null as example
    from found where there <> planned group by all
    union all by name
    select run, model, evaluation, 'steered nothing' as problem, '' as what, count(*) as rows,
           count(distinct config_id) as configs, min(row_id) as example
    from rows
    where status = 'ok' and vector <> '' and condition_met is distinct from false
      and (steered_tokens is null or steered_tokens <= 0) group by all
    union all by name
    select r.run, r.model, r.evaluation, 'nothing to compare with' as problem, '' as what, count(*) as rows,
           count(distinct r.config_id) as configs, min(r.row_id) as example
    from unpaired u
    join conditions c on c.run = u.run and c.evaluation = u.evaluation and c.baseline_id = u.baseline_id
    join suspects r on r.run = c.run and r.evaluation = c.evaluation and r.config_id = c.config_id
                   and r.prompt_id = u.prompt_id
    group by all
    union all by name
    select run, model, evaluation, 'not finite' as problem, '' as what, count(*) as rows,
           count(distinct config_id) as configs, min(row_id) as example
    from rows where kind = 'choice' and status = 'ok' and not isfinite(logit_diff) group by all
)
select run, model, evaluation, problem, what, p.rows::bigint as rows, p.rows / t.planned as share, configs, example
from problems p left join planned t using (run, model, evaluation)
order by run, model, evaluation, rows desc, problem, what;
