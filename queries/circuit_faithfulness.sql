-- How few edges carry a steering's effect, and how many of them would random ones need to be?
--
-- Parameters: measure, one of same_token, kl_from_steered, kl_to_steered, logprob (default logprob);
--   enough (default 0.85). A row for each size of circuit.
-- Needs: mechanism
-- Columns:
--   edges, share         how many edges the circuit has, and of how many that is which share
--   same_token .. logprob  how faithful it is, 1 being the steered model (the columns of circuits.parquet say how)
--   random               the chosen measure for circuits of as many edges drawn at random, their mean
--   enough               whether the chosen measure is at least so much
--   edges_needed         the smallest circuit of those measured that is enough; null where none is
-- Caveat: circuits are chosen on the texts of every other prompt and measured on the others. A share of a small
--   divergence is noisy: look at positions.
with parameters as (
    select parameter('measure', 'logprob') as measure,
           parameter('enough', '0.85')::double as enough
),
measured as (
    select c.*, case p.measure when 'same_token' then same_token when 'kl_from_steered' then kl_from_steered
                               when 'kl_to_steered' then kl_to_steered when 'logprob' then logprob end as chosen, p.enough as least
    from circuits c, parameters p
),
random as (
    select run, model, vector, injected_layer, multiplier, size, avg(chosen) as random, count(*) as controls,
           avg(edges) as random_edges
    from measured where control = 'random' group by all
)
select m.run, m.model, m.vector, m.injected_layer, m.multiplier, m.edges, m.share, m.positions, m.texts, m.same_token,
       m.kl_from_steered, m.kl_to_steered, m.logprob, r.random, r.random_edges, coalesce(r.controls, 0) as controls,
       m.chosen >= m.least as enough,
       min(m.edges) filter (m.chosen >= m.least) over (partition by m.run, m.model, m.vector, m.injected_layer, m.multiplier)
           as edges_needed
from measured m
left join random r using (run, model, vector, injected_layer, multiplier, size)
where m.control = ''
order by m.run, m.model, m.vector, m.injected_layer, m.multiplier, m.edges;
