-- What does steering cost in capability?
--
-- Parameters: capability, a regular expression for the evaluations or data sets that measure it
--   (mmlu|truthfulqa|capability). Empty where no choice evaluation of that name was run under the same steering.
-- Columns:
--   capability              the evaluation that measures it
--   accuracy                share of its items whose right answer is the likeliest; unsteered: baseline_accuracy
--   cost, cost_se           baseline_accuracy less accuracy, on the same items; its paired standard error
--   p_right, cost_p         mean p(right) among the answers; how much of it was lost
--   mass, baseline_mass     probability of all its answers together
--   evaluation, effect      what the same steering does to the behaviours that the same run evaluates: the mean
--                           change of the logit difference; null where it evaluates none
--   norm, relative_norm     the vector's norm; |multiplier| x its length / the stream's
-- Caveat: a cost within two standard errors is not shown to be one, nor shown to be none. Small sets of items
--   have large errors. An answer that is likeliest among the letters may be unlikely: look at mass. No intervals.
with chosen as materialized (
    select condition, run, evaluation from conditions c
    where c.kind = 'choice'
      and (regexp_matches(lower(c.evaluation), parameter('capability', 'mmlu|truthfulqa|capability'))
           or exists (from prompts p where p.run = c.run and p.evaluation = c.evaluation and regexp_matches(
               lower(p.data), parameter('capability', 'mmlu|truthfulqa|capability'))))
),
right_ as (
    select c.condition, r.prompt_id, c.baseline_id, c.run, c.evaluation, c.config_id, r.vector,
           (r.choice_logprobs[r.matching + 1] >= list_max(r.choice_logprobs))::int as hit, r.p_match, r.total_mass
    from rows r
    join conditions c on c.run = r.run and c.evaluation = r.evaluation and c.config_id = r.config_id
    join chosen using (condition)
    where r.status = 'ok' and r.kind = 'choice' and r.control in ('', 'system')
),
per_item as (
    select s.condition, b.item, avg(s.hit) as hit, avg(u.hit) as baseline_hit, avg(s.p_match) as p,
           avg(u.p_match) as baseline_p, avg(s.total_mass) as mass, avg(u.total_mass) as baseline_mass
    from right_ s
    join right_ u on u.vector = '' and u.run = s.run and u.evaluation = s.evaluation
                 and u.config_id = s.baseline_id and u.prompt_id = s.prompt_id
    join baselines b on b.baseline_condition = u.condition and b.prompt_id = u.prompt_id
    where s.vector <> ''
    group by s.condition, b.item
),
costs as (
    select condition, count(*) as items, avg(hit) as accuracy, avg(baseline_hit) as baseline_accuracy,
           avg(baseline_hit - hit) as cost, stddev_samp(baseline_hit - hit) / sqrt(count(*)) as cost_se,
           avg(p) as p_right, avg(baseline_p - p) as cost_p, avg(mass) as mass, avg(baseline_mass) as baseline_mass
    from per_item group by condition
),
behaviours as (
    select e.* from config_effects e anti join chosen using (condition)
)
select c.run, c.model, c.evaluation as capability, c.vector, c.norm, c.positions, c.operation, c.layers, c.depth,
       c.multiplier, c.relative_norm, k.items, accuracy, baseline_accuracy, cost, cost_se, p_right, cost_p,
       k.mass, k.baseline_mass, e.evaluation, e.system, e.effect, e.effect_se, e.effect_p
from costs k
join conditions c using (condition)
left join behaviours e on e.steering = c.steering
order by all;
