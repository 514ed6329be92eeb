-- How does the peak effect change with the model's size?
--
-- Parameters: none. Give all models' runs at once; a row for each model, vector, norm, position and multiplier.
-- Needs: statistics, fits over models
-- Columns:
--   billions                parameters as the model's name says (7b, 0.5B, 135m); null where it doesn't
--   layers_swept            at how many layers it was steered
--   peak_layer, peak_depth  the layer of the largest effect in the multiplier's own direction, and its depth
--   effect, effect_se       mean over items of the logit difference less the baseline's; its standard error
--   effect_p, effect_headroom   the same of p(matching); over the room it had: 1 - p upwards, p downwards
--   norm, relative_norm     the vector's norm; |multiplier| x its length / the stream's at the peak
--   kl                      the KL dose, with which models compare; null where multipliers were given
--   heldout_effect          mean effect on one half of the items at the layer that the other half chose: what the
--                           fits go through; heldout_low, heldout_high are its 95% interval over items
--   exponential, power, log_linear   each family's curve through the models' heldout_effect, x in billions, with
--                           its residual degrees of freedom; null where it can't be fitted
--   preferred               the family that the models prefer to both others; null where they can't tell
--   fit_why                 why there is no fit, none preferred or no interval
-- Caveat: compare models at equal relative_norm: the stream's length grows with depth and width, so that equal
--   multipliers of a unit vector alone make both an early peak and a decay with size. The peak is chosen on the
--   items that `effect` is reported on, and more layers are more chances: take heldout_effect. A preferred family
--   is the best of three over the sizes that were run, and no law. `scaling_fits` has the fits' parameters with
--   their intervals, and those of p(matching).
with curves as (
    select *, count(*) over (partition by curve) as layers_swept from config_effects
    where layer is not null and items > 0
    qualify row_number() over (partition by curve order by direction * effect desc, layer) = 1
),
held as (
    select c.curve, p.heldout_effect, p.low, p.high
    from peaks p join conditions c using (run, evaluation, config_id) where p.measure = 'logit_diff'
),
curve_texts as (
    select *, formula(family, "offset", scale, rate) || ' (' || residual_df || ' df)' as text
    from scaling where measure = 'logit_diff'
),
fits as (
    select run, evaluation, system, vector, norm, positions, operation, kl, level,
           any_value(text) filter (family = 'exponential') as exponential,
           any_value(text) filter (family = 'power') as power,
           any_value(text) filter (family = 'log_linear') as log_linear,
           any_value(family) filter (preferred) as preferred,
           string_agg(family || ': ' || why, '. ' order by family) as why
    from curve_texts group by all
)
select c.model, billions_in(c.model) as billions, c.run, c.evaluation, c.system, c.vector, c.norm, c.positions,
       c.operation, c.multiplier, c.kl, c.layers_swept, c.layer as peak_layer, c.depth as peak_depth, c.effect,
       c.effect_se, c.effect_p, c.effect_p_se, c.effect_headroom, c.relative_norm, h.heldout_effect,
       h.low as heldout_low, h.high as heldout_high, f.exponential, f.power, f.log_linear, f.preferred,
       case when f.evaluation is null then no_statistics() else f.why end as fit_why, c.items, c.total_mass,
       c.baseline_mass
from curves c
left join held h using (curve)
-- fits over several runs belong to no single one
left join fits f on coalesce(f.run, c.run) = c.run and f.evaluation = c.evaluation and f.system = c.system
                and f.vector = c.vector and f.norm = c.norm and f.positions = c.positions
                and f.operation = c.operation and f.kl is not distinct from c.kl
                and f.level is not distinct from c.level
order by c.evaluation, c.system, c.vector, c.norm, c.positions, c.operation, c.multiplier, billions, c.model, c.run;
