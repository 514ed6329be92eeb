-- Which layer steers most?
--
-- Parameters: none. A row for each vector, norm, position and multiplier: the sign is the multiplier's.
-- Needs: statistics
-- Columns:
--   peak_layer, peak_depth   the layer of the largest effect in the multiplier's own direction; depth is
--                            (layer + 1) / layers. An ablation counts as negative.
--   effect, effect_se        mean over items of the logit difference less the baseline's there; its standard error
--   effect_p                 the same of p(matching)
--   effect_headroom          effect_p over the room it had: 1 - p upwards, p downwards
--   kl                       the KL dose that each layer has, by a multiplier of its own; null where it was given
--   norm, relative_norm      the vector's norm; |multiplier| x its length / the stream's at that layer, null
--                            where not measured
--   heldout_effect           mean effect on one half of the items at the layer that the other half chose, over
--                            half-splits: what to report of a peak
--   heldout_low, heldout_high   its 95% interval over items
--   heldout_layer, heldout_share   the layer that halves chose most often, and the share of them that chose it
--   near_layers              the layers that can't be told from the best one; the true best is one in 95% of runs
--   outside_random, outside_shuffled, outside_unrelated   whether the vector exceeds each of 19 or more control
--                            vectors of that kind that count (see `controls`) over the layers of this row: the 5%
--                            level, for it alone; else null
--   wrong_way_layers         how many layers move the answers against the multiplier's sign
--   total_mass               probability of all answers together there, baseline_mass the unsteered one: where
--                            it is small, a ratio of answers says little
--   why                      why statistics are null, and what to beware of
-- Caveat: the layer is chosen on the items that `effect` is reported on, so `effect` is too large and its standard
--   error ignores the choice: report heldout_effect with its interval, and near_layers. Every row is one more
--   look, and of many rows some are outside by chance (`controls` has one verdict for all multipliers together).
--   The statistics, from heldout_effect to outside, are null where the run has none as it stands.
with curves as (
    select *, direction * effect as push from config_effects where layer is not null and items > 0
),
chosen as (
    select *, count(*) over same as layers_swept, (count_if(push < 0) over same)::bigint as wrong_way_layers
    from curves window same as (partition by curve)
    qualify row_number() over (partition by curve order by push desc, layer) = 1
),
held as (
    select c.curve, p.*
    from peaks p join conditions c using (run, evaluation, config_id) where p.measure = 'logit_diff'
),
outside as (
    select run, evaluation, config_id, any_value(outside) filter (control = 'random') as outside_random,
           any_value(outside) filter (control = 'shuffled') as outside_shuffled,
           any_value(outside) filter (control = 'unrelated') as outside_unrelated
    from bands where measure = 'logit_diff' group by all
)
select c.run, c.model, c.evaluation, c.system, c.vector, c.norm, c.positions, c.operation, c.multiplier,
       c.kl, c.layer as peak_layer, c.depth as peak_depth, c.effect, c.effect_se, c.effect_p, c.effect_headroom,
       c.relative_norm, h.heldout_effect, h.low as heldout_low, h.high as heldout_high, h.heldout_layer,
       h.heldout_share, h.near_layers, o.outside_random, o.outside_shuffled,
       o.outside_unrelated, c.layers_swept, c.wrong_way_layers, c.items, c.total_mass, c.baseline_mass,
       case when h.curve is null then no_statistics() else h.why end as why
from chosen c
left join held h using (curve)
left join outside o on o.run = h.run and o.evaluation = h.evaluation and o.config_id = h.config_id
order by all;
