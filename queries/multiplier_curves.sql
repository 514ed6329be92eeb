-- How does the answer move as the multiplier grows?
--
-- Parameters: layer, one layer only (all by default).
-- Columns:
--   multiplier               0 is the unsteered model, on the same items
--   p_match, logit_diff      mean over items; effect, effect_p less the unsteered model's
--   effect_se, effect_p_se   their standard errors over items
--   effect_headroom          effect_p over the room it had: 1 - p upwards, p downwards
--   monotone                 whether logit_diff never turns back over all multipliers of this curve, 0 included
--   norm, relative_norm      the vector's norm; |multiplier| x its length / the stream's, null where not measured
--   total_mass               probability of all answers together
-- Caveat: never fit through the end points alone, and look at total_mass before a large multiplier's p_match:
--   a ratio of answers that the model would no longer give says nothing. No intervals; fits are in analysis/.
with steered as (
    select * from config_effects
    where multiplier is not null and (parameter('layer', '') = '' or layer::varchar = parameter('layer', ''))
),
curves as (
    select dose, run, model, evaluation, system, vector, norm, positions, operation, layers, depth, multiplier,
           p_match, logit_diff, effect, effect_se, effect_p, effect_p_se, effect_headroom, relative_norm, items,
           total_mass
    from steered
    union all by name
    select distinct on (dose) dose, run, model, evaluation, system, vector, norm, positions, operation, layers,
           depth, 0.0 as multiplier, baseline_p_match as p_match, baseline_logit_diff as logit_diff,
           0.0 as effect, 0.0 as effect_p, 0.0 as relative_norm, items, baseline_mass as total_mass
    from steered order by dose, items desc
),
steps as (
    select *, logit_diff - lag(logit_diff) over (partition by dose order by multiplier) as step from curves
)
select run, model, evaluation, system, vector, norm, positions, operation, layers, depth, multiplier, p_match,
       logit_diff, effect, effect_se, effect_p, effect_p_se, effect_headroom, relative_norm,
       bool_and(step >= 0) over (partition by dose) or bool_and(step <= 0) over (partition by dose) as monotone,
       items, total_mass
from steps
order by all;
