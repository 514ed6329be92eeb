-- Which rows are not what was planned, and why?
--
-- Parameters: none. Empty where all is well.
-- Columns:
--   problem    error: the row failed; missing: planned and not there; not planned: more rows than planned;
--              steered nothing: good, and a vector was asked for, yet no position was steered; nothing to
--              compare with: good and steered, but the baseline on its prompt failed or isn't there, so no
--              effect counts it; not finite: the logit difference is infinite, so no mean counts it
--   what       the error with its numbers as #, so that alike ones stand together
--   rows       how many, share of those planned for these configurations' model and evaluation
--   configs    in how many configurations; example: one row's id
-- Caveat: while a run goes on, what is not there yet is missing. A row that failed and was tried again with
--   success is no failure. `vsteer check GRID` holds every row's id against the plan; this counts.
with planned as (
    select run, model, evaluation, sum(rows) as planned from conditions group by all
),
found as (
    select c.condition, c.run, c.model, c.evaluation, c.rows as planned, coalesce(r.there, 0) as there
    from conditions c
    left join (select run, evaluation, config_id, count(*) as there from rows group by all) r
           on r.run = c.run and r.evaluation = c.evaluation and r.config_id = c.config_id
),
steered as (
    select r.run, r.model, r.evaluation, r.config_id, r.row_id, r.steered_tokens, r.logit_diff, r.kind,
           c.baseline_id, r.prompt_id
    from rows r
    join conditions c on c.run = r.run and c.evaluation = r.evaluation and c.config_id = r.config_id
    where r.status = 'ok' and r.vector <> ''
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
    from steered where coalesce(steered_tokens, 0) <= 0 group by all
    union all by name
    select run, model, evaluation, 'nothing to compare with' as problem, '' as what, count(*) as rows,
           count(distinct config_id) as configs, min(row_id) as example
    from steered s
    anti join baselines b on b.run = s.run and b.evaluation = s.evaluation and b.baseline_id = s.baseline_id
                         and b.prompt_id = s.prompt_id
    where s.kind = 'choice' group by all
    union all by name
    select run, model, evaluation, 'not finite' as problem, '' as what, count(*) as rows,
           count(distinct config_id) as configs, min(row_id) as example
    from rows where kind = 'choice' and status = 'ok' and not isfinite(logit_diff) group by all
)
select run, model, evaluation, problem, what, p.rows::bigint as rows, p.rows / t.planned as share, configs, example
from problems p left join planned t using (run, model, evaluation)
order by run, model, evaluation, rows desc, problem, what;
