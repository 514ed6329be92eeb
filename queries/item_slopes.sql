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
-- Caveat: one item at few multipliers is mostly noise: its wrong_way is no finding, the share over items is
--   (steerability). No intervals.
with points as (
    select c.dose, i.item, c.multiplier, i.effect
    from item_effects i join conditions c using (condition)
    where c.multiplier is not null and i.effect is not null
      and (parameter('layer', '') = '' or c.layer::varchar = parameter('layer', ''))
      and (parameter('vector', '') = '' or c.vector = parameter('vector', ''))
),
-- the unsteered model is one point more, at multiplier 0 and effect 0: it adds to no sum but the count
lines as (
    select dose, item, 1 + count(*) as n, sum(multiplier) as x, sum(effect) as y,
           sum(multiplier * effect) - x * y / n as xy, sum(multiplier ** 2) - x ** 2 / n as xx,
           sum(effect ** 2) - y ** 2 / n as yy,
           list_append(list(multiplier), 0.0) as xs, list_append(list(effect), 0.0) as ys
    from points group by dose, item
),
slopes as (
    select dose, item, n, xy / xx as slope, sqrt(greatest(yy - xy ** 2 / xx, 0) / n) as residual,
           spearman(xs, ys) as rank_correlation
    from lines
),
items as (
    select item, any_value(b.question_id) as question_id, any_value(left(p.question, 60)) as question
    from baselines b left join prompts p on p.run = b.run and p.prompt_id = b.prompt_id group by item
),
unsteered as (
    select baseline_condition, item, avg(baseline_logit_diff) as baseline from baselines group by all
)
select c.run, c.model, c.evaluation, c.system, c.vector, c.norm, c.positions, c.operation, c.layers, c.depth,
       i.question_id, i.question, n as multipliers, slope, slope < 0 as wrong_way, rank_correlation, residual,
       baseline, c.vector_norm / nullif(c.stream_norm, 0) as relative_norm_1
from slopes s
join (select distinct on (dose) * from conditions where control = '') c using (dose)
join items i using (item)
join conditions b on b.run = c.run and b.evaluation = c.evaluation and b.config_id = c.baseline_id
left join unsteered u on u.baseline_condition = b.condition and u.item = s.item
order by all;
