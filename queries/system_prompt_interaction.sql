-- Do a system prompt and the vector add up?
--
-- Parameters: reference, the name of the system prompt that others are compared with (none by default).
-- Columns:
--   system, reference       the system prompts; a row without vector is the system prompt alone, steered by nothing
--   prompt_effect, _se      what the system prompt alone does to the logit difference, on the same items; its
--                           paired standard error; prompt_effect_p: the same for p(matching)
--   effect_without, _with   what the vector does under the reference, and under the system prompt
--   interaction, _se        effect_with - effect_without; its standard error, paired: above 0 where they reinforce
--                           each other, below where one takes the other's room
--   p_reference, p_prompt, p_both   mean p(matching): neither, the system prompt alone, both
--   headroom_without, _with         each change of p(matching) over the room it had
--   norm, relative_norm     the vector's norm; |multiplier| x its length / the stream's
-- Caveat: near p = 0 or 1 two things can't add up in probability: an interaction that is there in p and not in the
--   logit difference is a ceiling's. The query is empty where a run has one system prompt. There are no intervals.
with everything as materialized (
    select condition, item, effect, effect_p, logit_diff, p_match, baseline_logit_diff, baseline_p_match
    from item_effects
    union all
    select baseline_condition, item, 0.0, 0.0, avg(baseline_logit_diff), avg(baseline_p_match),
           avg(baseline_logit_diff), avg(baseline_p_match)
    from baselines group by baseline_condition, item
),
pairs as (
    select w.condition as with_prompt, o.condition as without, w.*, o.system as reference
    from conditions w
    join conditions o on o.anywhere = w.anywhere and o.system <> w.system
    where o.system = parameter('reference', '') and (w.control = '' or w.vector = '')
),
means as (
    select q.with_prompt, q.without, count(*) as items,
           avg(w.baseline_logit_diff - o.baseline_logit_diff) as prompt_effect,
           stddev_samp(w.baseline_logit_diff - o.baseline_logit_diff) / sqrt(count(*)) as prompt_effect_se,
           avg(w.baseline_p_match - o.baseline_p_match) as prompt_effect_p,
           avg(o.effect) as effect_without, avg(w.effect) as effect_with,
           avg(w.effect - o.effect) as interaction,
           stddev_samp(w.effect - o.effect) / sqrt(count(*)) as interaction_se,
           avg(o.effect_p) as effect_p_without, avg(w.effect_p) as effect_p_with,
           avg(o.baseline_p_match) as p_reference, avg(w.baseline_p_match) as p_prompt, avg(w.p_match) as p_both
    from pairs q
    join everything o on o.condition = q.without
    join everything w on w.condition = q.with_prompt and w.item = o.item
    where o.effect is not null and w.effect is not null
    group by q.with_prompt, q.without
)
select q.run, q.model, q.evaluation, q.system, q.reference, q.vector, q.norm, q.positions, q.operation, q.layers,
       q.depth, q.multiplier, q.relative_norm, items, prompt_effect, prompt_effect_se, prompt_effect_p,
       effect_without, effect_with, interaction, interaction_se, p_reference, p_prompt, p_both,
       over_headroom(effect_p_without, p_reference) as headroom_without,
       over_headroom(effect_p_with, p_prompt) as headroom_with
from means m join pairs q using (with_prompt, without)
order by all;
