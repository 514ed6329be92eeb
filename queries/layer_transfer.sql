-- Does the direction of one layer steer at the others?
--
-- Parameters: none. Needs vectors of one layer's direction at every layer (vsteer vectors: one layer for all);
--   empty without.
-- Columns:
--   made_at_layer, layer    where the direction was made, and where it was added
--   effect, effect_se       mean over items of the logit difference less the baseline's; its standard error
--   own_effect              the same direction's effect at the layer where it was made
--   share                   effect / own_effect; null where the own one is within two standard errors of nothing
--   effect_p                change of p(matching)
--   norm, relative_norm     the vector's norm; |multiplier| x its length / the stream's at `layer`
-- Caveat: one direction has one length at every layer, so later layers, whose stream is longer, get relatively
--   less: read effect beside relative_norm. share is a ratio and has no interval here.
with moved as materialized (
    select * from config_effects where made_at_layer is not null and layer is not null
)
select e.run, e.model, e.evaluation, e.system, e.vector, e.norm, e.positions, e.operation, e.multiplier,
       e.made_at_layer, e.layer, e.depth, e.effect, e.effect_se, o.effect as own_effect,
       case when abs(o.effect) > 2 * o.effect_se then e.effect / o.effect end as share,
       e.effect_p, e.relative_norm, e.items, e.total_mass
from moved e
left join moved o on o.curve = e.curve and o.layer = e.made_at_layer
order by all;
