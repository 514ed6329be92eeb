-- How does the peak effect change with the model's size?
--
-- Parameters: none. Give all models' runs at once; a row for each model, vector, norm, position and multiplier.
-- Columns:
--   billions                parameters as the model's name says (7b, 0.5B, 135m); null where it doesn't
--   layers_swept            at how many layers it was steered
--   peak_layer, peak_depth  the layer of the largest effect in the multiplier's own direction, and its depth
--   effect, effect_se       mean over items of the logit difference less the baseline's; its standard error
--   effect_p, effect_headroom   the same of p(matching); over the room it had: 1 - p upwards, p downwards
--   norm, relative_norm     the vector's norm; |multiplier| x its length / the stream's at the peak
-- Caveat: compare models at equal relative_norm: the stream's length grows with depth and width, so that equal
--   multipliers of a unit vector alone make both an early peak and a decay with size. The peak is chosen on the
--   items that it is reported on, and more layers are more chances: for a claim take peaks on held-out items and
--   the fits in analysis/, which say what so few sizes leave open. No intervals here.
select model, billions_in(model) as billions, run, evaluation, system, vector, norm, positions, operation,
       multiplier, count(*) over (partition by curve) as layers_swept, layer as peak_layer, depth as peak_depth,
       effect, effect_se, effect_p, effect_p_se, effect_headroom, relative_norm, items, total_mass, baseline_mass
from config_effects
where layer is not null and items > 0
qualify row_number() over (partition by curve order by direction * effect desc, layer) = 1
order by evaluation, system, vector, norm, positions, operation, multiplier, billions, model, run;
