-- On which of two data sets does a condition hold: how often on the one that is meant, how often on the other?
--
-- Parameters: data, other (the two sets, by their data or their evaluations; without them all pairs, in both orders)
--   and thresholds (grid: the conditions as the grid has them; all: every measured cosine too, which is the ROC).
-- Columns:
--   vector, layer, token, side, threshold   the condition: the cosine of the unsteered prompt's stream with the vector
--                               is above or below the threshold
--   data, evaluation            the set on which it is meant to hold; prompts, of which it holds on held
--   hit_rate                    held / prompts, with its 95% interval (Wilson's) hit_low to hit_high
--   other, other_evaluation     the set on which it is not meant to hold; other_prompts, of which it holds on
--                               false_alarms; null where there is no second set
--   false_alarm_rate            false_alarms / other_prompts, with its interval false_low to false_high
--   auc                         the area under the ROC curve: how often a prompt of data lies further on the
--                               condition's side than one of other, ties by half; the same for every threshold
-- Caveat: what is counted are prompts, and both letter orders of a question are two of them, so intervals are too
--   narrow there. A threshold that was chosen on these prompts looks better than it is: choose it on one pair of
--   sets and read it on another. Prompts that could not be measured are left out (see failures).
with conditional as (
    select distinct run, model, hash(model, model_commit, dtype, quantization, kv_cache_dtype) as loaded,
           when_vector as vector, when_layer as layer, when_token as token, when_side as side,
           when_threshold as threshold
    from conditions where when_vector is not null
),
asked as (
    select distinct run, prompt_id, evaluation, data, kind, system from prompts
),
measured as (
    select c.run, hash(c.model, c.model_commit, c.dtype, c.quantization, c.kv_cache_dtype) as loaded, c.vector,
           c.layer, c.token, a.evaluation, a.data, a.kind, a.system, c.cosine
    from cosines c join asked a using (run, prompt_id)
),
thresholds as (
    from conditional
    union
    select c.run, c.model, c.loaded, c.vector, c.layer, c.token, c.side, m.cosine
    from conditional c join measured m using (run, loaded, vector, layer, token)
    where parameter('thresholds', 'grid') = 'all'
),
counted as (
    select t.*, m.evaluation, m.data, m.kind, m.system, count(*) as prompts,
           count_if(case t.side when 'above' then m.cosine > t.threshold else m.cosine < t.threshold end)::bigint
               as held,
           1.959963984540054 as z
    from thresholds t join measured m using (run, loaded, vector, layer, token)
    group by all
),
-- Wilson's interval is middle - half to middle + half
rated as (
    select *, held / prompts as rate, (held + z * z / 2) / (prompts + z * z) as middle,
           z * sqrt(held * (prompts - held) / prompts + z * z / 4) / (prompts + z * z) as half,
           greatest(middle - half, 0) as low, least(middle + half, 1) as high
    from counted
),
pairs as (
    select row_number() over () as pair, * from (
    select distinct a.run, a.loaded, a.vector, a.layer, a.token, a.side, a.kind, a.system, a.evaluation,
           o.evaluation as other_evaluation
    from counted a
    join counted o using (run, loaded, vector, layer, token, side, threshold, kind, system)
    where a.data <> o.data and parameter('data', a.data) in (a.data, a.evaluation)
      and parameter('other', o.data) in (o.data, o.evaluation))
),
-- from ranks, in which equal cosines share theirs
ranked as (
    select p.*, m.evaluation = p.evaluation as own,
           rank() over (partition by p.pair order by m.cosine)
           + (count(*) over (partition by p.pair, m.cosine) - 1) / 2 as place
    from pairs p
    join measured m using (run, loaded, vector, layer, token, kind, system)
    where m.evaluation in (p.evaluation, p.other_evaluation)
),
areas as (
    select * exclude (own, place),
           (sum(place) filter (own) - count_if(own) * (count_if(own) + 1) / 2) / (count_if(own) * count_if(not own))
               as above
    from ranked group by all
)
select r.run, r.model, r.vector, r.layer, r.token, r.side, r.threshold, r.system, r.data, r.evaluation, r.prompts,
       r.held, r.rate as hit_rate, r.low as hit_low, r.high as hit_high, o.data as other,
       o.evaluation as other_evaluation, o.prompts as other_prompts, o.held as false_alarms,
       o.rate as false_alarm_rate, o.low as false_low, o.high as false_high,
       case r.side when 'above' then a.above else 1 - a.above end as auc
from rated r
left join areas a on a.run = r.run and a.loaded = r.loaded and a.vector = r.vector and a.layer = r.layer
                 and a.token = r.token and a.side = r.side and a.kind = r.kind and a.system = r.system
                 and a.evaluation = r.evaluation
left join rated o on o.run = r.run and o.loaded = r.loaded and o.vector = r.vector and o.layer = r.layer
                 and o.token = r.token and o.side = r.side and o.threshold = r.threshold and o.kind = r.kind
                 and o.system = r.system and o.evaluation = a.other_evaluation
where parameter('data', r.data) in (r.data, r.evaluation)
order by r.run, r.model, r.vector, r.layer, r.token, r.kind, r.system, r.data, r.evaluation, other, other_evaluation,
         r.side, r.threshold;
