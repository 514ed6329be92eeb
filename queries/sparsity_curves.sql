-- How much of a steering's effect is left as its vector loses dimensions?
--
-- Parameters: none. A row for each sparse vector that was swept. Give the run beside which `vsteer mechanism
--   sparsify` wrote, and the run of the grid that it wrote, which is another.
-- Needs: mechanism
-- Columns:
--   method, dimensions, share   how the dimensions were chosen, how many are left, and of how many that is which share
--   ratio                the threshold of attribution; the baselines keep as many dimensions as it does
--   effect, effect_se    on the logit difference, as in all queries; items are questions
--   whole_effect         the whole vector's, and random_effect that of random vectors of its length, their mean
--   kept                 effect / whole_effect
--   cosine               of the sparse vector with the whole one
-- Caveat: every sparse vector is as long as the whole one. Kept says little where the whole effect is not much
--   larger than its error or than random_effect. The dimensions were chosen by a metric on texts, not on these items.
with random as (
    select run, evaluation, model, system, vector, layer, multiplier, positions, avg(effect) as random_effect,
           count(distinct control_index) as controls
    from effects where control = 'random' and operation = 'add' group by all
),
swept as (select * from config_effects where operation = 'add' and layer is not null)
select e.run, s.model, s.vector, s.injected_layer, s.multiplier, e.evaluation, e.system, s.method, s.ratio, s.dimensions,
       s.share, e.effect, e.effect_se, e.items, w.effect as whole_effect, w.effect_se as whole_effect_se,
       e.effect / nullif(w.effect, 0) as kept, r.random_effect, coalesce(r.controls, 0) as controls, s.cosine, s.sparse
from (select distinct on (model, sparse, injected_layer, multiplier) * from sparsity order by run) s
join swept e on e.vector = s.sparse and e.layer = s.injected_layer and e.multiplier = s.multiplier and e.model = s.model
join swept w on w.vector = s.vector and (w.run, w.evaluation, w.model, w.system, w.layer, w.multiplier, w.positions)
              = (e.run, e.evaluation, e.model, e.system, e.layer, e.multiplier, e.positions)
left join random r on (r.run, r.evaluation, r.model, r.system, r.vector, r.layer, r.multiplier, r.positions)
              = (w.run, w.evaluation, w.model, w.system, w.vector, w.layer, w.multiplier, w.positions)
order by e.run, s.vector, s.injected_layer, s.multiplier, e.evaluation, e.system, s.method, s.dimensions;
