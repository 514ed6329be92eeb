-- Through what does a steering act: which kinds of edges carry its attributed effect?
--
-- Parameters: none. A row for each kind of writer and reader: injected, head, mlp to query, key, value, mlp,
--   unembedding.
-- Needs: mechanism
-- Columns:
--   edges            how many edges are of the kind, in the one graph of the model
--   total            the sum of their scores; those that leave the injection add up to about the whole effect
--   magnitude        the sum of their |scores|, and its share of all edges' magnitudes
--   random_share     the same share for random vectors of the vector's length, on the same positions
--   random_magnitude the magnitude under them
--   exact            the rank correlation of scores with exact patching, over the patched edges of the kind
-- Caveat: a score is attributed, not measured, and scores of edges one behind the other count the same effect
--   again, so only those over a cut add up. A kind with many edges has much magnitude by itself: compare with
--   random_share.
with kinds as (
    select run, model, vector, injected_layer, multiplier, control, control_index, writer, reader, count(*) as edges,
           sum(score) as total, sum(abs(score)) as magnitude
    from edges group by all
),
shares as (
    select *, magnitude / nullif(sum(magnitude) over (
               partition by run, model, vector, injected_layer, multiplier, control, control_index), 0) as share
    from kinds
),
random as (
    select run, model, vector, injected_layer, multiplier, writer, reader, avg(share) as random_share,
           avg(magnitude) as random_magnitude, count(*) as controls
    from shares where control = 'random' group by all
),
ranked as (
    select *, rank() over of_kind_score as by_score, rank() over of_kind_effect as by_effect
    from edges where effect is not null
    window of_kind_score as (partition by run, model, vector, injected_layer, multiplier, writer, reader order by score),
           of_kind_effect as (partition by run, model, vector, injected_layer, multiplier, writer, reader order by effect)
),
exact as (
    select run, model, vector, injected_layer, multiplier, writer, reader, count(*) as patched,
           case when count(*) > 2 then corr(by_score, by_effect) end as exact
    from ranked group by all
)
select s.run, s.model, s.vector, s.injected_layer, s.multiplier, s.writer, s.reader, s.edges, s.total, s.magnitude, s.share,
       r.random_share, r.random_magnitude, coalesce(r.controls, 0) as controls, coalesce(e.patched, 0) as patched, e.exact
from shares s
left join random r using (run, model, vector, injected_layer, multiplier, writer, reader)
left join exact e using (run, model, vector, injected_layer, multiplier, writer, reader)
where s.control = ''
order by s.run, s.model, s.vector, s.injected_layer, s.multiplier, s.magnitude desc;
