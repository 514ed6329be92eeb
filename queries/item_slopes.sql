-- How does the vector move each single item?
--
-- Parameters: layer, one layer only; vector, one vector only (all by default).
-- Columns:
--   question_id             the item, both letter orders together; question: how it begins
--   multipliers             at how many, the unsteered 0 among them
--   slope                   of its logit difference over the multipliers; wrong_way: below 0
--   rank_correlation        Spearman's between multiplier and logit difference
--   residual                root mean square of what the line leaves over
--   baseline                its unsteered logit difference
--   norm, relative_norm_1   the vector's norm; its length / the stream's, that is at multiplier 1
-- Caveat: one item at few multipliers is mostly noise: its wrong_way is no finding, but the share over items is
--   (see steerability). There are no intervals.
with families as (
    select c.*, b.condition as baseline_condition,
           row_number() over (order by c.run, c.model, c.evaluation, c.system, c.vector, c.norm, c.positions,
                                       c.operation, c.layers) as nth
    from (select distinct on (dose) * from conditions where control = '' and vector <> '') c
    join conditions b on b.run = c.run and b.evaluation = c.evaluation and b.config_id = c.baseline_id
    where (parameter('layer', '') = '' or c.layer::varchar = parameter('layer', ''))
      and (parameter('vector', '') = '' or c.vector = parameter('vector', ''))
),
items as (
    select item, any_value(b.question_id) as question_id, any_value(left(p.question, 60)) as question
    from baselines b left join prompts p on p.run = b.run and p.prompt_id = b.prompt_id group by item
),
unsteered as (
    select baseline_condition, item, avg(baseline_logit_diff) as baseline from baselines group by all
)
select f.run, f.model, f.evaluation, f.system, f.vector, f.norm, f.positions, f.operation, f.layers, f.depth,
       i.question_id, i.question, l.points as multipliers, l.slope, l.slope < 0 as wrong_way, l.rank_correlation,
       l.residual, u.baseline, f.vector_norm / nullif(f.stream_norm, 0) as relative_norm_1
from item_lines l
join families f using (dose)
join items i using (item)
left join unsteered u on u.baseline_condition = f.baseline_condition and u.item = l.item
-- not `all`: there may be a row for each of hundreds of thousands
order by f.nth, i.item;
