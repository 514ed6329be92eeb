-- How often does the steered model refuse, set by set of instructions, and how nearly does it begin to?
--
-- Parameters: none. A row for each configuration and data set: harmful and harmless instructions stand below one
--   another and are never in one mean. Needs refusal scores of open-ended rows (vsteer score RUN --scorer
--   refusal) for the shares, evaluations of the kind refusal_tokens for the log-odds; what is not there is null.
-- Columns:
--   data                             the instructions, such as refusal/harmful and refusal/harmless
--   evaluation, scorer_hash          whose texts were scored, and with which version of the scorer
--   texts                            how many, each scored steered and unsteered: both shares are of the same ones
--   refusals, rate                   how many of them refuse; their share, its 95% interval (Wilson's) rate_low to
--   rate_low, rate_high              rate_high
--   baseline_refusals, baseline_rate, baseline_low, baseline_high   the same of the unsteered model
--   began, stopped                   texts that refuse only when steered, only when unsteered
--   tokens                           the tokens that begin refusals, of the first generated token
--   items                            how many instructions have log-odds
--   log_odds, baseline_log_odds      mean log P(tokens) - log(1 - P(tokens)), steered and unsteered
--   log_odds_change, log_odds_change_se   steered less unsteered on the same instructions; its standard error
--   held, baseline_held              how many log-odds are at their upper bound 13.86, beyond which all is rounding
--   norm, relative_norm              the vector's norm; |multiplier| x its length / the stream's
-- Caveat: refusals are found by English phrases early in the text; a text cut short, or broken by steering, is not a
--   refusal, which is not to say that it complies: read some, and look at coherence. An interval is of its own
--   share; two that overlap may still differ on the same texts (began, stopped). Samples of one instruction count
--   as texts of their own, so with more than one the intervals are too narrow. Tokens such as I begin other
--   answers too. The best of many rows is partly lucky.
with asked as (
    select run, evaluation, any_value(data) as data,
           any_value(case when len(choices) = 2 and choices[2] = 'any other token' then choices[1] end) as tokens
    from prompts group by run, evaluation
),
judged as materialized (
    select c.condition, c.run, c.evaluation, c.config_id, c.baseline_id, c.vector, r.prompt_id, r.sample,
           s.scorer_hash, s.value::int as refused
    from scores s
    join rows r on r.run = s.run and r.row_id = s.row_id
    join conditions c on c.run = r.run and c.evaluation = r.evaluation and c.config_id = r.config_id
    where s.scorer = 'refusal' and s.name = 'refusal' and s.value is not null and r.control in ('', 'system')
),
counted as (
    select s.condition, s.scorer_hash, count(*) as texts, sum(s.refused)::bigint as refusals,
           sum(u.refused)::bigint as baseline_refusals, count_if(s.refused > u.refused)::bigint as began,
           count_if(s.refused < u.refused)::bigint as stopped, 1.959963984540054 as z
    from judged s
    join judged u on u.vector = '' and u.run = s.run and u.evaluation = s.evaluation and u.config_id = s.baseline_id
                 and u.prompt_id = s.prompt_id and u.sample = s.sample and u.scorer_hash = s.scorer_hash
    where s.vector <> ''
    group by s.condition, s.scorer_hash
),
-- Wilson's interval is middle - half to middle + half
intervals as (
    select *, (refusals + z * z / 2) / (texts + z * z) as middle,
           z * sqrt(refusals * (texts - refusals) / texts + z * z / 4) / (texts + z * z) as half,
           (baseline_refusals + z * z / 2) / (texts + z * z) as baseline_middle,
           z * sqrt(baseline_refusals * (texts - baseline_refusals) / texts + z * z / 4) / (texts + z * z)
               as baseline_half
    from counted
),
shares as (
    select c.steering, c.system, c.forced_prefix, a.data, c.evaluation, i.* exclude (z),
           refusals / texts as rate, greatest(middle - half, 0) as rate_low, least(middle + half, 1) as rate_high,
           baseline_refusals / texts as baseline_rate, greatest(baseline_middle - baseline_half, 0) as baseline_low,
           least(baseline_middle + baseline_half, 1) as baseline_high
    from intervals i
    join conditions c using (condition)
    join asked a on a.run = c.run and a.evaluation = c.evaluation
),
bounds as (
    select e.condition, count_if(e.logit_diff >= 13.8629)::bigint as held,
           count_if(e.baseline_logit_diff >= 13.8629)::bigint as baseline_held
    from effects e
    join asked a on a.run = e.run and a.evaluation = e.evaluation
    where a.tokens is not null and e.control = ''
    group by e.condition
),
odds as (
    select e.condition, c.steering, c.system, c.forced_prefix, a.data, a.tokens, e.items, e.logit_diff as log_odds,
           e.baseline_logit_diff as baseline_log_odds, e.effect as log_odds_change, e.effect_se as log_odds_change_se,
           b.held, b.baseline_held
    from config_effects e
    join conditions c using (condition)
    join asked a on a.run = c.run and a.evaluation = c.evaluation
    join bounds b using (condition)
    where a.tokens is not null
),
together as (
    select coalesce(s.condition, o.condition) as which, coalesce(s.data, o.data) as data,
           s.* exclude (condition, data), o.* exclude (condition, data, steering, system, forced_prefix)
    from shares s
    full join odds o on o.steering = s.steering and o.system = s.system and o.forced_prefix = s.forced_prefix
                    and o.data = s.data
)
select c.run, c.model, t.data, c.system, c.vector, c.norm, c.positions, c.operation, c.layers, c.depth, c.multiplier,
       c.relative_norm, t.evaluation, scorer_hash, texts, refusals, rate, rate_low, rate_high, baseline_refusals,
       baseline_rate, baseline_low, baseline_high, began, stopped, tokens, items, log_odds, baseline_log_odds,
       log_odds_change, log_odds_change_se, held, baseline_held
from together t
join conditions c on c.condition = t.which
order by c.run, c.model, c.system, c.forced_prefix, c.vector, c.norm, c.positions, c.operation, c.layers, c.multiplier,
         t.data, t.evaluation, scorer_hash, tokens;
