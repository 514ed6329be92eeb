-- Which layer steers most?
--
-- Parameters: none. A row for each vector, norm, position and multiplier: the sign is the multiplier's.
-- Columns:
--   peak_layer, peak_depth   the layer of the largest effect in the multiplier's own direction; depth is
--                            (layer + 1) / layers. An ablation counts as negative.
--   effect, effect_se        mean over items of the logit difference less the baseline's there; its standard error
--   effect_p                 the same of p(matching)
--   effect_headroom          effect_p over the room it had: 1 - p upwards, p downwards
--   norm, relative_norm      the vector's norm; |multiplier| x its length / the stream's at that layer, null
--                            where not measured
--   near_layers              every layer whose effect is less than the peak's by at most one standard error of
--                            their difference on the same items; null with fewer than two items
--   wrong_way_layers         how many layers move the answers against the multiplier's sign
--   total_mass               probability of all answers together there, baseline_mass the unsteered one: where
--                            it is small, a ratio of answers says little
-- Caveat: the layer is chosen on the items that its effect is reported on, so `effect` is too large and its
--   standard error says nothing of the choice: report near_layers, or choose on one half of the items. No
--   interval stands here, as an argmax has none that SQL could give. Set the peak beside `controls`.
with per_item as materialized (select * from item_effects),
means as (
    select condition, count(effect) as items, avg(effect) as effect,
           stddev_samp(effect) / sqrt(count(effect)) as effect_se, avg(effect_p) as effect_p,
           avg(baseline_p_match) as baseline_p, avg(total_mass) as total_mass, avg(baseline_mass) as baseline_mass
    from per_item group by condition having count(effect) > 0
),
curves as (
    select m.*, c.* exclude (condition), c.direction * m.effect as push
    from means m join conditions c using (condition) where c.layer is not null
),
peaks as (
    select *, count(*) over same as layers_swept, (count_if(push < 0) over same)::bigint as wrong_way_layers
    from curves window same as (partition by curve)
    qualify row_number() over (partition by curve order by push desc, layer) = 1
),
behind as (
    select p.curve, o.layer, avg(p.direction * (a.effect - b.effect)) as gap,
           stddev_samp(a.effect - b.effect) / sqrt(count(*)) as gap_se
    from peaks p
    join curves o on o.curve = p.curve
    join per_item a on a.condition = p.condition
    join per_item b on b.condition = o.condition and b.item = a.item
    group by all
),
near as (
    select curve, list(layer order by layer) filter (gap <= gap_se) as near_layers from behind group by curve
)
select run, model, evaluation, system, vector, norm, positions, operation, multiplier,
       layer as peak_layer, depth as peak_depth, effect, effect_se, effect_p,
       over_headroom(effect_p, baseline_p) as effect_headroom, relative_norm, near_layers, layers_swept,
       wrong_way_layers, items, total_mass, baseline_mass
from peaks join near using (curve)
order by all;
