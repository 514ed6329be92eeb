-- How do two runs, or two models, differ, item by item?
--
-- Parameters: layer, one layer only; vector, one vector only (all by default). Give two runs or more, or a run of
--   several models. A row for each configuration that both have: all but run and model is the same.
-- Needs: differences
-- Columns:
--   run, model                   what is compared, in the order in which the runs were given; then the models' names
--   other_run, other_model       what it is compared with
--   items, items_left_out        items that have an effect in both, and those that have one in only one of them
--   effect, other_effect         mean change of the logit difference by steering, on the items that both have
--   difference, difference_se    other_effect - effect, and its standard error over items, paired
--   difference_low, _high        its 95% interval over items
--   p_value                      paired t-test of the difference, two-sided; for this row alone, not corrected
--   effect_p, other_effect_p, difference_p, ...   the same of p(matching)
--   baseline_p, other_baseline_p   what each does unsteered
--   relative_norm, other_relative_norm   |multiplier| x the vector's length / the stream's, in each
--   why                          why intervals are null, and what to beware of
-- Caveat: equal layers of models of unequal depth are not equal depths, and a vector of one name is made anew in each
--   model: look at the relative norms. Two effects near a ceiling differ in p for that reason alone. Many rows are
--   many looks: choose the layer beforehand.
with per_item as materialized (select * from item_effects),
pairs as (
    select c.condition, c.other
    from compared c join conditions a using (condition)
    where (parameter('layer', '') = '' or a.layer::varchar = parameter('layer', ''))
      and (parameter('vector', '') = '' or a.vector = parameter('vector', ''))
),
paired as (
    select q.condition, q.other, count(*) as items, avg(a.effect) as effect, avg(b.effect) as other_effect,
           avg(b.effect - a.effect) as difference, stddev_samp(b.effect - a.effect) / sqrt(count(*)) as difference_se,
           avg(a.effect_p) as effect_p, avg(b.effect_p) as other_effect_p,
           avg(b.effect_p - a.effect_p) as difference_p,
           stddev_samp(b.effect_p - a.effect_p) / sqrt(count(b.effect_p - a.effect_p)) as difference_p_se,
           avg(a.baseline_p_match) as baseline_p, avg(b.baseline_p_match) as other_baseline_p
    from pairs q
    join per_item a on a.condition = q.condition
    join per_item b on b.condition = q.other and b.item = a.item
    where a.effect is not null and b.effect is not null
    group by q.condition, q.other
),
counted as (select condition, count(effect) as items from per_item group by condition),
within as (
    select condition, other, any_value(low) filter (measure = 'logit_diff') as low,
           any_value(high) filter (measure = 'logit_diff') as high,
           any_value(p_value) filter (measure = 'logit_diff') as p_value,
           any_value(low) filter (measure = 'p_match') as p_low, any_value(high) filter (measure = 'p_match') as p_high,
           string_agg(distinct why, '; ' order by why) as why
    from differences group by condition, other
)
select a.run, a.model, b.run as other_run, b.model as other_model, a.evaluation, a.system, a.vector, a.norm,
       a.positions, a.operation, a.layers, a.multiplier, p.items, n.items + m.items - 2 * p.items as items_left_out,
       p.effect, p.other_effect, p.difference, p.difference_se, w.low as difference_low, w.high as difference_high,
       w.p_value, p.effect_p, p.other_effect_p, p.difference_p, p.difference_p_se, w.p_low as difference_p_low,
       w.p_high as difference_p_high, p.baseline_p, p.other_baseline_p, a.relative_norm,
       b.relative_norm as other_relative_norm,
       case when w.condition is null then 'no intervals: DuckDB alone does not make them' else w.why end as why
from paired p
join conditions a on a.condition = p.condition
join conditions b on b.condition = p.other
join counted n on n.condition = p.condition
join counted m on m.condition = p.other
left join within w on w.condition = p.condition and w.other = p.other
order by a.run, b.run, a.model, b.model, a.evaluation, a.system, a.vector, a.norm, a.positions, a.operation,
         a.layers, a.multiplier;
