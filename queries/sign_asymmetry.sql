-- Does negative steering act more strongly than positive?
--
-- Parameters: none. A row for each layer at which both m and -m were run, or a KL dose to both sides.
-- Needs: statistics
-- Columns:
--   multiplier                  |m|; with a KL dose that of the positive side
--   kl                          the KL dose of both sides; null where multipliers were given
--   effect_minus, effect_plus   mean change of the logit difference at -m and at +m, on items that have both
--   asymmetry, asymmetry_se     -effect_minus - effect_plus, and its standard error over items, paired:
--                               above 0 where negative steering acts more strongly in its own direction
--   asymmetry_low, asymmetry_high   its 95% interval over items
--   effect_p_*, asymmetry_p*    the same of p(matching)
--   headroom_minus, _plus       effect_p over the room it had: p downwards, 1 - p upwards
--   asymmetry_headroom          -headroom_minus - headroom_plus
--   baseline_p                  what the unsteered model does, which says where the ceiling is near
--   norm, relative_norm         the vector's norm; |m| x its length / the stream's, null where not measured
--   mass_minus, mass_plus       probability of all answers together; unsteered: baseline_mass
--   why                         why intervals are null, and what to beware of
-- Caveat: an asymmetry of probabilities can be nothing but a ceiling: believe it where all three agree. The
--   headroom's is a ratio of means and has no standard error. Many layers are many looks, and each interval is
--   for its row alone: choose the layer beforehand. They are null where the run has no statistics as it stands.
with per_item as materialized (select * from item_effects),
pairs as (
    select n.condition as minus, p.condition as plus, p.*
    from conditions p
    join conditions n on n.dose = p.dose and n.kl is not distinct from p.kl and n.level = -p.level
    where p.level > 0 and p.control = ''
),
paired as (
    select q.minus, q.plus, count(*) as items, avg(n.effect) as effect_minus, avg(p.effect) as effect_plus,
           avg(-n.effect - p.effect) as asymmetry,
           stddev_samp(-n.effect - p.effect) / sqrt(count(*)) as asymmetry_se,
           avg(n.effect_p) as effect_p_minus, avg(p.effect_p) as effect_p_plus,
           avg(-n.effect_p - p.effect_p) as asymmetry_p,
           stddev_samp(-n.effect_p - p.effect_p) / sqrt(count(*)) as asymmetry_p_se,
           avg(p.baseline_p_match) as baseline_p, avg(n.total_mass) as mass_minus,
           avg(p.total_mass) as mass_plus, avg(p.baseline_mass) as baseline_mass
    from pairs q
    join per_item n on n.condition = q.minus
    join per_item p on p.condition = q.plus and p.item = n.item
    where n.effect is not null and p.effect is not null
    group by q.minus, q.plus
),
within as (
    select c.condition as plus, any_value(low) filter (measure = 'logit_diff') as logit_low,
           any_value(high) filter (measure = 'logit_diff') as logit_high,
           any_value(low) filter (measure = 'p_match') as p_low, any_value(high) filter (measure = 'p_match') as p_high,
           string_agg(distinct why, '; ' order by why) as why
    from asymmetries join conditions c using (run, evaluation, config_id) group by c.condition
)
select q.run, q.model, q.evaluation, q.system, q.vector, q.norm, q.positions, q.operation, q.layers, q.depth,
       q.multiplier, q.kl, q.relative_norm, items, baseline_p, effect_minus, effect_plus, asymmetry, asymmetry_se,
       w.logit_low as asymmetry_low, w.logit_high as asymmetry_high, effect_p_minus, effect_p_plus, asymmetry_p,
       asymmetry_p_se, w.p_low as asymmetry_p_low, w.p_high as asymmetry_p_high,
       over_headroom(effect_p_minus, baseline_p) as headroom_minus,
       over_headroom(effect_p_plus, baseline_p) as headroom_plus,
       -headroom_minus - headroom_plus as asymmetry_headroom, mass_minus, mass_plus, baseline_mass,
       case when w.plus is null then no_statistics() else w.why end as why
from paired join pairs q using (minus, plus)
left join within w using (plus)
order by all;
