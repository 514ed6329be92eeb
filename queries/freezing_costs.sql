-- What does a steering lose where attention weights, values or MLPs are those of the unsteered model?
--
-- Parameters: none. A row for each condition.
-- Needs: mechanism
-- Columns:
--   measure              log_odds of the matching answer, or refusal: the share of texts that refuse
--   items, unsteered     how many questions, and the unsteered model's mean
--   steered_effect       the mean effect of the whole steering
--   effect, se           the mean effect under the condition, and its standard error over questions
--   cost                 what is lost: 1 - effect / steered_effect
--   random_effect        the effect of random vectors of the vector's length under the condition
--   random_steered       and without it
-- Caveat: a cost is a share of the steered effect: where that isn't much larger than a random vector's, or than its
--   error, the cost says nothing. A cost above 1 turned the effect round.
with effects as (
    select *, value - unsteered as effect from freezing
),
means as (
    select run, model, vector, injected_layer, multiplier, measure, condition, control, control_index, count(*) as items,
           avg(unsteered) as unsteered, avg(effect) as effect, stddev_samp(effect) / sqrt(count(*)) as se
    from effects group by all
),
random as (
    select run, model, vector, injected_layer, multiplier, measure, condition, avg(effect) as random_effect, count(*) as controls
    from means where control = 'random' group by all
),
steered as (
    select run, model, vector, injected_layer, multiplier, measure, effect as steered_effect
    from means where control = '' and condition = 'steered'
)
select m.run, m.model, m.vector, m.injected_layer, m.multiplier, m.measure, m.condition, m.items, m.unsteered,
       s.steered_effect, m.effect, m.se, 1 - m.effect / nullif(s.steered_effect, 0) as cost, r.random_effect,
       w.random_effect as random_steered, coalesce(r.controls, 0) as controls
from means m
join steered s using (run, model, vector, injected_layer, multiplier, measure)
left join random r using (run, model, vector, injected_layer, multiplier, measure, condition)
left join random w on (w.run, w.model, w.vector, w.injected_layer, w.multiplier, w.measure, w.condition)
       = (m.run, m.model, m.vector, m.injected_layer, m.multiplier, m.measure, 'steered')
where m.control = ''
order by m.run, m.model, m.vector, m.injected_layer, m.multiplier, m.measure, cost;
