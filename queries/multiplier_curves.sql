-- How does the answer move as the multiplier grows?
--
-- Parameters: layer, one layer only (all by default).
-- Needs: statistics
-- Columns:
--   multiplier               0 is the unsteered model, on the same items; a clamp has none
--   p_match, logit_diff      mean over items; effect, effect_p less the unsteered model's
--   effect_se, effect_p_se   their standard errors over items; effect_low, effect_high, effect_p_low, effect_p_high
--                            are 95% intervals
--   effect_headroom          effect_p over the room it had: 1 - p upwards, p downwards
--   monotone                 whether logit_diff never turns back over all multipliers of this curve, 0 included
--   isotonic_r2              how much of logit_diff's course the nearest curve explains that never turns back
--   slope, slope_low, slope_high   of the line through logit_diff over all multipliers of this curve, and its 95%
--                            interval; line_r2 how much of its course the line explains
--   p_slope, p_midpoint      of the logistic curve through p_match, in logits; the multiplier of even odds
--   norm, relative_norm      the vector's norm; |multiplier| x its length / the stream's, null where not measured
--   kl                       the KL dose that the multiplier was found by, alike at each layer; null where it was given
--   total_mass               probability of all answers together
--   why                      why intervals and fits are null, and what to beware of
-- Caveat: never fit through the end points alone, and look at total_mass before a large multiplier's p_match:
--   a ratio of answers that the model would no longer give says nothing. A line or logistic curve of low r2 is not
--   the shape. Each interval is for its row alone; they and the fits are null where the run has no statistics as
--   it stands. The table doses has more about the fits.
with steered as (
    select e.*, k.config_id from config_effects e join conditions k using (condition)
    where e.multiplier is not null and (parameter('layer', '') = '' or e.layer::varchar = parameter('layer', ''))
),
curves as (
    select condition, dose, run, model, evaluation, system, vector, norm, positions, operation, layers, depth,
           multiplier, p_match, logit_diff, effect, effect_se, effect_p, effect_p_se, effect_headroom,
           relative_norm, items, total_mass, kl
    from steered
    union all by name
    select distinct on (dose) dose, run, model, evaluation, system, vector, norm, positions, operation, layers,
           depth, 0.0 as multiplier, baseline_p_match as p_match, baseline_logit_diff as logit_diff,
           0.0 as effect, 0.0 as effect_p, 0.0 as relative_norm, items, baseline_mass as total_mass
    from steered where unsteered_at_zero(operation) order by dose, items desc
),
steps as (
    select *, logit_diff - lag(logit_diff) over (partition by dose order by multiplier) as step from curves
),
within as (
    select s.condition, any_value(i.low) filter (i.measure = 'logit_diff') as effect_low,
           any_value(i.high) filter (i.measure = 'logit_diff') as effect_high,
           any_value(i.low) filter (i.measure = 'p_match') as effect_p_low,
           any_value(i.high) filter (i.measure = 'p_match') as effect_p_high,
           any_value(i.why) filter (i.measure = 'logit_diff') as why
    from intervals i join steered s using (run, evaluation, config_id) group by s.condition
),
lines as (
    select s.dose, d.* from doses d join steered s using (run, evaluation, config_id) where d.measure = 'logit_diff'
),
logistics as (
    select s.dose, d.* from doses d join steered s using (run, evaluation, config_id) where d.measure = 'p_match'
)
select s.run, s.model, s.evaluation, s.system, s.vector, s.norm, s.positions, s.operation, s.layers, s.depth,
       s.multiplier, s.p_match, s.logit_diff, s.effect, s.effect_se, w.effect_low, w.effect_high, s.effect_p,
       s.effect_p_se, w.effect_p_low, w.effect_p_high, s.effect_headroom, s.relative_norm, s.kl,
       bool_and(s.step >= 0) over (partition by s.dose) or bool_and(s.step <= 0) over (partition by s.dose)
           as monotone,
       l.isotonic_r2, l.slope, l.slope_low, l.slope_high, l.fit_r2 as line_r2, p.slope as p_slope,
       p.midpoint as p_midpoint, s.items, s.total_mass,
       case when l.dose is null then no_statistics()
            else nullif(array_to_string(list_distinct([w.why, l.why]), '; '), '') end as why
from steps s
left join within w using (condition)
left join lines l using (dose)
left join logistics p using (dose)
order by all;
