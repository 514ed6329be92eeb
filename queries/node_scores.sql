-- Which heads and MLPs carry a steering's effect?
--
-- Parameters: none. A row for each head and MLP behind the injection; layer and head say which.
-- Needs: mechanism
-- Columns:
--   score            the sum of the scores of the edges that leave it: the effect that goes through it
--   to_unembedding   the part of it that goes to the unembedding at once
--   random           the mean score under random vectors of the vector's length, at the same positions
--   random_largest   the largest |score| that any head or MLP has under them
-- Caveat: scores of nodes one behind the other count the same effect again, so they don't add up to the whole.
with random as (
    select run, model, vector, injected_layer, multiplier, writer, writer_layer, writer_head, avg(score) as random,
           count(*) as controls
    from nodes where control = 'random' group by all
),
largest as (
    select run, model, vector, injected_layer, multiplier, max(abs(score)) as random_largest
    from nodes where control = 'random' and writer <> 'injected' group by all
)
select n.run, n.model, n.vector, n.injected_layer, n.multiplier, n.writer as kind, n.writer_layer as layer,
       n.writer_head as head, n.score, n.to_unembedding, r.random, l.random_largest, coalesce(r.controls, 0) as controls
from nodes n
left join random r on (r.run, r.model, r.vector, r.injected_layer, r.multiplier, r.writer, r.writer_layer)
       = (n.run, n.model, n.vector, n.injected_layer, n.multiplier, n.writer, n.writer_layer)
      and r.writer_head is not distinct from n.writer_head
left join largest l on (l.run, l.model, l.vector, l.injected_layer, l.multiplier)
       = (n.run, n.model, n.vector, n.injected_layer, n.multiplier)
where n.control = '' and n.writer <> 'injected'
order by n.run, n.model, n.vector, n.injected_layer, n.multiplier, abs(n.score) desc;
