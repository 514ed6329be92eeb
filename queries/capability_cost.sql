-- What does steering cost in capability?
--
-- Parameters: capability, a regular expression for the evaluations or data sets that measure it
--   (mmlu|truthfulqa|capability, and every task of lm-eval). Empty where none was run under the same steering.
-- Columns:
--   capability              the evaluation that measures it
--   metric                  accuracy; or, of a task of lm-eval, the metric by the harness's name
--   accuracy                share of its items whose right answer is the likeliest, or the metric; unsteered:
--                           baseline_accuracy
--   cost, cost_se           how much worse it is than the unsteered one, on the same items; its paired standard
--                           error. Of a perplexity it is the logarithm of the ratio
--   cost_low, cost_high     95% of the cost by the normal
--   p_right, cost_p         mean p(right) among the answers; how much of it was lost
--   mass, baseline_mass     probability of all its answers together
--   evaluation, effect      what the same steering does to the behaviours that the same run evaluates: the mean
--                           change of the logit difference; null where it evaluates none
--   norm, relative_norm     the vector's norm; |multiplier| x its length / the stream's
-- Caveat: a cost within two standard errors is not shown to be one, nor shown to be none. Small sets of items
--   have large errors, and their intervals are too narrow. An answer that is likeliest among the letters may be unlikely:
--   look at mass.
with tasks as materialized (
    select t.* from task_means t join conditions c using (condition)
    where regexp_matches(lower(c.evaluation), parameter('capability', ''))
),
chosen as materialized (
    select condition, run, evaluation from conditions c
    where c.kind = 'choice' and condition not in (select condition from task_means)
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
    select condition, 'accuracy' as metric, count(*) as items, avg(hit) as accuracy,
           avg(baseline_hit) as baseline_accuracy,
           avg(baseline_hit - hit) as cost, stddev_samp(baseline_hit - hit) / sqrt(count(*)) as cost_se,
           avg(p) as p_right, avg(baseline_p - p) as cost_p, avg(mass) as mass, avg(baseline_mass) as baseline_mass
    from per_item group by condition
    union all by name
    select t.condition, metric, paired as items, case when of_logarithms then exp(paired_x) else paired_x end as accuracy,
           case when of_logarithms then exp(baseline) else baseline end as baseline_accuracy, worse as cost,
           worse_se as cost_se
    from tasks t join conditions c using (condition)
    where c.vector <> '' and c.control = '' and paired > 0
),
behaviours as (
    select e.* from config_effects e anti join chosen using (condition) anti join tasks using (condition)
)
select c.run, c.model, c.evaluation as capability, k.metric, c.vector, c.norm, c.positions, c.operation, c.layers,
       c.depth, c.multiplier, c.kl, c.relative_norm, k.items, accuracy, baseline_accuracy, cost, cost_se,
       cost - 1.96 * cost_se as cost_low, cost + 1.96 * cost_se as cost_high, p_right, cost_p,
       k.mass, k.baseline_mass, e.evaluation, e.system, e.effect, e.effect_se, e.effect_p
from costs k
join conditions c using (condition)
left join behaviours e on e.steering = c.steering
order by all;
