-- Does a vector that was made in one model steer another?
--
-- Parameters: none. Needs a vector's file that says in which model it was made, run in another; empty without.
-- Columns:
--   made_in_model, model    where the vector was made, and where it was added
--   effect, effect_se       mean over items of the logit difference less the baseline's; its standard error
--   own_vector, own_effect  vectors that were made in this model itself, at the same layers, multiplier and norm
--                           on the same questions, in any of the runs; null where there is none
--   share                   effect / own_effect; null where the own one is within two standard errors of nothing
--   vector_norm             the vector's length at that layer: relative_norm is not known here, as the stream
--                           was measured in the other model
-- Caveat: equal layers of models of unequal depth are not equal depths. own_vector may be of another behaviour:
--   look at its name. share is a ratio and has no interval here. Vectors whose file does not name its model are
--   not in it.
with per_config as materialized (
    select * from config_effects where coalesce(made_in_model, '') <> ''
)
select e.made_in_model, e.model, e.run, e.evaluation, e.system, e.vector, e.norm, e.positions, e.operation,
       e.layer, e.depth, e.multiplier, e.effect, e.effect_se, e.effect_p, o.vector as own_vector,
       o.effect as own_effect, case when abs(o.effect) > 2 * o.effect_se then e.effect / o.effect end as share,
       e.vector_norm, e.items, e.total_mass
from per_config e
left join per_config o on o.made_here and o.model = e.model and o.evaluation = e.evaluation
                      and o.system = e.system and o.norm = e.norm and o.positions = e.positions
                      and o.operation = e.operation and o.layers = e.layers
                      and o.kl is not distinct from e.kl and o.level is not distinct from e.level
where not e.made_here
order by all;
