-- The tables and views that the queries read, over `rows`, `configs`, `prompts`, `norms`,
-- `kl_doses` and `scores`.
-- They need DuckDB alone; vsteer/results/views.py runs this, and `vsteer sql --print` prints it.

-- A change of probability relative to the room there was for it: upwards 1 - p, downwards p.
create or replace temp macro over_headroom(change, p) as
    change / nullif(case when change >= 0 then 1 - p else p end, 0);

-- A parameter of a query: `set variable layer = 12` before it, or `vsteer sql --set layer=12`.
create or replace temp macro parameter(name, otherwise) as coalesce(getvariable(name)::varchar, otherwise);

-- Whether the unsteered model is what the operation does with a multiplier of 0: clamped to 0, the stream lacks a
-- component.
create or replace temp macro unsteered_at_zero(operation) as operation <> 'clamp';

-- What a query says where the tables of statistics lack what it asks for.
create or replace temp macro no_statistics() as 'no statistics of this run as it stands: vsteer stats RUN';

-- A curve over models' sizes, x in billions of parameters; null where it was not fitted.
create or replace temp macro formula(family, c, scale, rate) as case family
    when 'exponential' then printf('%.3g %+.3g exp(%+.3g x)', c, scale, -rate)
    when 'power' then printf('%.3g x^%.3g', scale, -rate)
    when 'log_linear' then printf('%.3g %+.3g ln(x)', c, scale) end;

-- Each configuration with its baseline, which is the unsteered one that is asked in the same way.
--   condition      its number here; an id may stand in several evaluations
-- Configurations have the same
--   family         if they are a vector or its controls, whatever the layers and the multiplier
--   place          if they are a vector or its controls at the same layers and multiplier, or the same KL dose
--   curve          if they differ in nothing but the layer, each with its own multiplier where that has a KL dose
--   dose           if they differ in nothing but the multiplier
--   anywhere       if they differ in nothing but the system prompt
--   steering       if they steer one model alike, whatever it is asked
-- And further
--   kl             the KL divergence that the multiplier was found by; null where a multiplier was given
--   measured_kl    the one that it was found to have; null where that is not known any more
--   level          what the grid lists: the multiplier, or with a KL dose the multiplier's sign
--   direction      which way the multiplier pushes, 1 or -1; an ablation takes away
--   relative_norm  |multiplier| x the vector's norm / the stream's norm at that layer, measured where the
--                  vector was extracted and in the same model, or by the run at the last token of its prompts where
--                  the vector came from elsewhere; null where that isn't known
create or replace temp table conditions as
with asked_doses as (
    select run, unnest(config_ids) as config_id, kl, sign as dose_sign, measured_kl from kl_doses
),
settings as (
    select *, case when kl is null then multiplier else dose_sign end as level,
           hash(run, evaluation, kind, model, model_commit, dtype, quantization, kv_cache_dtype, template,
                   system, system_prompt, forced_prefix, max_tokens, temperature, top_p, seed) as setting,
           hash(run, evaluation, kind, model, model_commit, dtype, quantization, kv_cache_dtype,
                forced_prefix, max_tokens, temperature, top_p, seed) as asked,
           hash(vector, vector_recipe, norm, case when vector <> '' then control end, control_index, operation,
                positions) as pushed,
           hash(run, model, model_commit, dtype, quantization, kv_cache_dtype) as loaded
    from configs left join asked_doses using (run, config_id)
),
measured as (
    select run, vector_sha256, layer, made_in_model, made_in_revision, made_in_sha256,
           any_value(vector_norm) as vector_norm, any_value(stream_norm) as stream_norm,
           any_value(made_at_layer) as made_at_layer
    from norms group by all
),
found as (
    select c.*, b.config_id as baseline_id, n.vector_norm, n.made_in_model, n.made_at_layer,
           n.made_in_model = c.model or c.model_commit in (n.made_in_revision, n.made_in_sha256) as made_here,
           -- a vector from elsewhere knows another model's stream
           case when made_here then n.stream_norm end as stream_norm
    from settings c
    left join settings b on b.setting = c.setting and b.vector = ''
    left join measured n on n.run = c.run and n.vector_sha256 = c.vector_sha256 and n.layer = c.layer
                        and c.vector <> ''
    qualify row_number() over (partition by c.run, c.evaluation, c.config_id
                               order by made_here desc nulls last) = 1
)
select (row_number() over (order by run, evaluation, config_id))::integer as condition,
       -- two vectors of one name and norm in one run don't exist
       (dense_rank() over (order by setting, vector, norm, positions, operation))::integer as family,
       (dense_rank() over (order by setting, vector, norm, positions, operation, layers, kl, level))::integer
           as place,
       (dense_rank() over (order by setting, pushed, kl, level))::integer as curve,
       (dense_rank() over (order by setting, pushed, layers))::integer as dose,
       (dense_rank() over (order by asked, pushed, layers, kl, level))::integer as anywhere,
       (dense_rank() over (order by loaded, pushed, layers, kl, level))::integer as steering,
       coalesce(nullif(sign(level), 0), -1) as direction,
       abs(multiplier) * vector_norm / nullif(stream_norm, 0) as relative_norm,
       * exclude (asked, pushed, loaded, dose_sign)
from found;

-- What the unsteered model does, one row a prompt: what a row's effect is measured against.
-- `item` numbers the questions, and both letter orders of one have the same; `prompt` numbers the prompts.
create or replace temp table baselines as
with questions as (
    select run, prompt_id, any_value(matching) as matching, any_value(len(choices)) as choice_count,
           any_value(coalesce(nullif(swapped_from, ''), item_id)) as question_id
    from prompts group by all
)
select r.run, r.evaluation, r.config_id as baseline_id, r.prompt_id, c.condition as baseline_condition,
       (dense_rank() over (order by r.prompt_id))::integer as prompt,
       (dense_rank() over (order by coalesce(any_value(q.question_id), any_value(r.item_id))))::integer as item,
       coalesce(any_value(q.question_id), any_value(r.item_id)) as question_id,
       any_value(r.letter_order) as letter_order, any_value(coalesce(q.matching, r.matching)) as matching,
       any_value(coalesce(q.choice_count, len(r.choices))) as choice_count,
       avg(r.logit_diff) filter (isfinite(r.logit_diff)) as baseline_logit_diff,
       avg(r.p_match) as baseline_p_match, avg(r.total_mass) as baseline_mass
from rows r
join conditions c on c.run = r.run and c.evaluation = r.evaluation and c.config_id = r.config_id
left join questions q on q.run = r.run and q.prompt_id = r.prompt_id
where r.kind = 'choice' and r.status = 'ok' and r.vector = ''
group by r.run, r.evaluation, r.config_id, r.prompt_id, c.condition;

-- One row for each good, steered choice row, less the baseline's on the same prompt. Controls are in it: a query
-- about the vector has to filter by control = ''. A row whose baseline failed is not in it (see failures).
create or replace temp view effects as
select c.condition, c.place, b.item, b.prompt, b.question_id, r.control, r.run, r.evaluation, r.model, r.vector, r.norm,
       r.control_index, r.layer, r.layers, r.depth, r.operation, r.multiplier, r.positions, r.system,
       r.config_id, r.prompt_id, r.letter_order, r.sample, b.matching, b.choice_count,
       case when isfinite(r.logit_diff) then r.logit_diff end as logit_diff, b.baseline_logit_diff,
       case when isfinite(r.logit_diff) then r.logit_diff - b.baseline_logit_diff end as effect,
       r.p_match, b.baseline_p_match, r.p_match - b.baseline_p_match as effect_p,
       over_headroom(r.p_match - b.baseline_p_match, b.baseline_p_match) as effect_headroom,
       r.total_mass, b.baseline_mass, c.vector_norm, c.stream_norm, c.relative_norm, c.kl, c.level
from rows r
join conditions c on c.run = r.run and c.evaluation = r.evaluation and c.config_id = r.config_id
join baselines b on b.run = c.run and b.evaluation = c.evaluation and b.baseline_id = c.baseline_id
                and b.prompt_id = r.prompt_id
where r.kind = 'choice' and r.status = 'ok' and r.vector <> '';

-- How large a model is, in billions of parameters, as its name says: 7b, 0.5B, 135m. null where the name says
-- nothing, or two things, or counts experts (8x7b).
create or replace temp macro billions_in(name) as (
    with found as (
        select regexp_extract_all(lower(name), '(?:^|[^0-9a-z.])([0-9]+(?:\.[0-9]+)?[bm])(?:$|[^0-9a-z])', 1) as sizes
    )
    select case when len(sizes) = 1 then rtrim(sizes[1], 'bm')::double
                / case right(sizes[1], 1) when 'b' then 1 else 1000 end end
    from found
);

-- The vector's effects, one row a configuration and question: the mean over letter orders and samples. The
-- baseline's columns are means over the same rows: effect is logit_diff less baseline_logit_diff.
create or replace temp view item_effects as
select condition, item, avg(effect) as effect, avg(effect_p) as effect_p,
       avg(effect + baseline_logit_diff) as logit_diff, avg(effect_p + baseline_p_match) as p_match,
       avg(baseline_logit_diff) filter (effect is not null) as baseline_logit_diff,
       avg(baseline_p_match) filter (effect_p is not null) as baseline_p_match,
       avg(total_mass) as total_mass, avg(baseline_mass) as baseline_mass
from effects where control = '' group by condition, item;

-- The vector's effects, one row a configuration: the mean over questions, and its standard error.
create or replace temp view config_effects as
with means as (
    select condition, count(effect) as items, avg(effect) as effect,
           stddev_samp(effect) / sqrt(count(effect)) as effect_se, avg(effect_p) as effect_p,
           stddev_samp(effect_p) / sqrt(count(effect_p)) as effect_p_se, avg(logit_diff) as logit_diff,
           avg(p_match) as p_match, avg(baseline_logit_diff) as baseline_logit_diff,
           avg(baseline_p_match) as baseline_p_match, avg(total_mass) as total_mass,
           avg(baseline_mass) as baseline_mass
    from item_effects group by condition
)
select c.run, c.evaluation, c.model, c.system, c.vector, c.norm, c.positions, c.operation, c.layer, c.layers,
       c.depth, c.multiplier, c.vector_norm, c.stream_norm, c.relative_norm, m.*,
       over_headroom(m.effect_p, m.baseline_p_match) as effect_headroom, c.curve, c.dose, c.anywhere,
       c.steering, c.direction, c.kl, c.level, c.made_in_model,
       c.made_here, c.made_at_layer
from means m join conditions c using (condition);

-- What 16 bits do to an effect of one question, by those that were computed again in float32. A mean effect that is
-- smaller is not told from rounding: it may be on one side in all questions.
create or replace temp view roundings as
select run, model, dtype, evaluation, count(*) as measured, sqrt(avg((effect - effect_float32) ** 2)) as rounding,
       avg(effect - effect_float32) as mean_rounding
from rounding group by all;

-- A line through each question's logit differences over the multipliers, by least squares, and Spearman's
-- correlation of the two. The unsteered model is one point more, at multiplier 0 and effect 0, where it is that.
create or replace temp view item_lines as
with gathered as (
    select c.dose, i.item, bool_and(unsteered_at_zero(c.operation))::int as zero, zero + count(*) as points, sum(c.multiplier) as x, sum(i.effect) as y,
           sum(c.multiplier * i.effect) - x * y / points as xy, sum(c.multiplier ** 2) - x ** 2 / points as xx,
           sum(i.effect ** 2) - y ** 2 / points as yy,
           list_concat(list(i.effect order by c.multiplier) filter (c.multiplier < 0),
                       if(bool_and(unsteered_at_zero(c.operation)), [0.0], []::double[]),
                       list(i.effect order by c.multiplier) filter (c.multiplier > 0)) as effects
    from item_effects i join conditions c using (condition)
    where c.multiplier is not null and i.effect is not null
    group by c.dose, i.item
),
-- Twice each effect's rank less the mean rank: how many others are below it less how many are above, so that
-- equal ones share theirs. (In the same step the list would be gathered anew for each of its numbers.)
ranked as (
    select *, list_transform(effects, lambda e: list_sum(list_transform(effects, lambda o: sign(e - o))))::double[]
           as ranks
    from gathered
)
select dose, item, points, xy / nullif(xx, 0) as slope, sqrt(greatest(yy - xy ** 2 / nullif(xx, 0), 0) / points) as residual,
       -- a multiplier's rank is its place
       list_inner_product(range(1, points + 1)::double[], ranks)
       / nullif(sqrt(list_inner_product(ranks, ranks) * points * (points ** 2 - 1) / 12), 0) as rank_correlation
from ranked;

-- The control vectors' effects, one row a configuration that is a control. `effect` is the mean over questions, and
-- over the rows in which the vector has an effect at the same place; null where the control has none there.
--   whole     whether the control vector has an effect wherever its vector has one: in each of its rows, at all
--             places of the family, by both measures
--   counted   whether it is held against the vector: it is whole, and it is stored as another vector than the
--             steered one and than every whole control of its kind before it
create or replace temp view control_effects as
with steered as materialized (
    select condition, place, item, prompt, sample, control = '' as own, effect, effect_p from effects
),
needed as (
    select c.family, count(s.effect) as effects, count(s.effect_p) as effects_p
    from steered s join conditions c using (condition) where s.own group by c.family
),
per_item as (
    select s.condition, s.item, avg(s.effect) filter (o.effect is not null) as effect,
           count(s.effect) filter (o.effect is not null) as effects,
           count(s.effect_p) filter (o.effect_p is not null) as effects_p
    from steered s join steered o using (place, prompt, sample)
    where o.own and not s.own
    group by s.condition, s.item
),
means as (
    select condition, avg(effect) as effect, sum(effects) as effects, sum(effects_p) as effects_p
    from per_item group by condition
),
stored as (
    select family, control, control_index, list_sort(list(distinct vector_sha256)) as sha256
    from conditions where vector <> '' group by family, control, control_index
),
-- from the configurations, so that a control vector without any row is in it
vectors as (
    select c.family, c.control, c.control_index,
           coalesce(sum(m.effects), 0) = any_value(n.effects)
           and coalesce(sum(m.effects_p), 0) = any_value(n.effects_p) as whole
    from conditions c join needed n using (family) left join means m using (condition)
    where c.control in ('random', 'shuffled', 'unrelated')
    group by c.family, c.control, c.control_index
),
chosen as (
    select v.family, v.control, v.control_index, v.whole,
           v.whole and s.sha256 <> o.sha256
           and row_number() over (partition by v.family, v.control, v.whole, s.sha256
                                  order by v.control_index) = 1 as counted
    from vectors v
    join stored s on s.family = v.family and s.control = v.control
                 and s.control_index is not distinct from v.control_index
    join stored o on o.family = v.family and o.control = ''
)
select c.condition, c.family, c.place, c.control, c.control_index, c.layers, c.layer, c.multiplier, m.effect,
       v.whole, v.counted
from conditions c
join chosen v on v.family = c.family and v.control = c.control
             and v.control_index is not distinct from c.control_index
left join means m using (condition);

-- The one verdict on a vector's controls of a kind, over all layers and multipliers of its family. The terminal's
-- table, `controls` and the report show it, and the statistics hold a vector against the same control vectors.
--   condition           where the vector's |mean effect| is largest
--   controls            how many control vectors count; controls_left_out don't
--   control_largest     the largest of their own largest |mean effects|; control_median is the median of these
--   outside             whether the vector exceeds all of them; null with too few, which can't say
--   verdict             the same in words
--   headline            whether it is the verdict to quote, that of the strictest kind: not outside before too few,
--                       and these before outside; of equal ones the kind that leaves the vector the larger p-value
create or replace temp view control_verdicts as
with vectors as (
    select c.family, arg_max(e.condition, (abs(e.effect), -e.condition)) as condition,
           max(abs(e.effect)) as largest
    from config_effects e join conditions c using (condition) where e.items > 0 group by c.family
),
chance as (
    select family, control, control_index, any_value(counted) as counted, max(abs(effect)) as largest
    from control_effects group by family, control, control_index
),
against as (
    select v.family, c.control, v.condition, v.largest, count_if(counted)::bigint as controls,
           count_if(not counted)::bigint as controls_left_out,
           max(c.largest) filter (counted) as control_largest,
           median(c.largest) filter (counted) as control_median,
           count_if(counted and c.largest >= v.largest)::bigint as exceeded_by
    from chance c join vectors v using (family) group by all
)
select *, case when controls > 0 then (1 + exceeded_by) / (1 + controls) end as p_value,
       case when controls >= enough_controls() then exceeded_by = 0 end as outside,
       case outside
           when true then 'the peak is outside the band of the ' || control
                || ' vectors (5% level, for this vector alone)'
           when false then 'the peak is NOT outside the band of the ' || control
                || ' vectors: no effect is shown'
           else 'too few ' || control || ' vectors to say more: ' || controls || ' whole and distinct, '
                || enough_controls() || ' are needed' end as verdict,
       row_number() over (partition by family
                          order by case outside when false then 0 when true then 2 else 1 end,
                                   p_value desc nulls first, control) = 1 as headline
from against;

-- Which configurations stand beside each other, in two runs or two models: all but these two is the same. Runs that
-- have models in common are compared model by model, and a run of several models model with model.
create or replace temp view compared as
with sides as (
    select distinct r.place as given, c.run, c.model from conditions c join runs r using (run)
),
pairs as (
    select a.run, a.model, b.run as other_run, b.model as other_model
    from sides a join sides b on (a.given, a.model) < (b.given, b.model)
    where a.run = b.run or a.model = b.model
       or not exists (from sides x join sides y using (model) where x.run = a.run and y.run = b.run)
)
select a.condition, b.condition as other
from pairs p
join conditions a on a.run = p.run and a.model = p.model
join conditions b on b.run = p.other_run and b.model = p.other_model and b.evaluation = a.evaluation
                 and b.system = a.system and b.system_prompt = a.system_prompt
                 and b.forced_prefix = a.forced_prefix and b.vector = a.vector and b.norm = a.norm
                 and b.operation = a.operation and b.positions = a.positions and b.layers = a.layers
                 and b.kl is not distinct from a.kl and b.level is not distinct from a.level
where a.kind = 'choice' and b.kind = 'choice' and a.vector <> '' and a.control = '' and b.control = '';

-- The metrics of lm-eval's tasks, a line for each of a row's: steered, unsteered, and as a difference.
--   x         the metric; of a perplexity its logarithm, since the mean over documents is that of logarithms
--   weight    what the document weighs in that mean: the words of a perplexity by word, else 1
--   baseline  x of the unsteered model on the same prompt; worse is how much worse x is than that
create or replace temp view task_metrics as
with values_ as (
    select run, row_id, name as metric, value from scores
    where scorer = 'lm_eval' and value is not null and not ends_with(name, '.weight')
),
weights as (
    select run, row_id, name, value from scores where scorer = 'lm_eval' and ends_with(name, '.weight')
),
lines as (
    select c.condition, c.run, c.evaluation, c.config_id, c.baseline_id, r.prompt_id, v.metric,
           contains(v.metric, 'perplexity') as of_logarithms,
           case when of_logarithms then ln(v.value) else v.value end as x, coalesce(w.value, 1) as weight
    from values_ v
    join rows r on r.run = v.run and r.row_id = v.row_id
    join conditions c on c.run = r.run and c.evaluation = r.evaluation and c.config_id = r.config_id
    left join weights w on w.run = v.run and w.row_id = v.row_id and w.name = v.metric || '.weight'
)
select s.condition, s.prompt_id, s.metric, s.of_logarithms, s.x, s.weight, u.x as baseline,
       case when s.of_logarithms or contains(s.metric, 'bits_per_byte') then s.x - u.x else u.x - s.x end as worse
from lines s
left join lines u on u.run = s.run and u.evaluation = s.evaluation and u.config_id = s.baseline_id
                 and u.prompt_id = s.prompt_id and u.metric = s.metric;

-- Their means over documents, and the standard errors of these: of the weighted mean, which with equal weights is
-- the sample's standard deviation over the root of the count. What is compared with the unsteered model is over the
-- documents that both have: `paired` of them, with the mean `paired_x`.
create or replace temp view task_means as
with means as (
    select condition, metric, any_value(of_logarithms) as of_logarithms, count(*) as documents,
           count(baseline) as paired, sum(weight) as weights, sum(weight) filter (baseline is not null) as paired_weights,
           sum(weight * t.x) / weights as x, sum(weight * t.x) filter (baseline is not null) / paired_weights as paired_x,
           sum(weight * t.baseline) / paired_weights as baseline, sum(weight * t.worse) / paired_weights as worse
    from task_metrics t group by condition, metric
),
spread as (
    select m.condition, m.metric, sum((t.weight * (t.x - m.x)) ** 2) as of_x,
           sum((t.weight * (t.worse - m.worse)) ** 2) as of_worse
    from means m join task_metrics t using (condition, metric) group by all
)
select m.*, sqrt(documents / nullif(documents - 1, 0) * of_x) / weights as x_se,
       sqrt(paired / nullif(paired - 1, 0) * of_worse) / paired_weights as worse_se
from means m join spread using (condition, metric);
