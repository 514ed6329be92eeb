-- How much effect can a vector have before the text falls apart?
--
-- Parameters: coherence, the name of the score that measures it (perplexity), where more is worse. The query
--   is empty without such scores of open-ended rows, which vsteer score makes.
-- Columns:
--   scorer, scorer_hash     what gave the scores; two versions of a scorer are never mixed
--   score, score_se         mean over texts; its standard error over rows; baseline_score of the unsteered model
--   texts                   how many texts were scored
--   evaluation, effect      what the same steering does to the choices of the same run: the mean change of the
--                           logit difference; null where it has no choices
--   frontier                whether no other layer or multiplier of this vector, norm and position has more effect
--                           in its own direction at a score as good
--   norm, relative_norm     the vector's norm; |multiplier| x its length / the stream's
-- Caveat: a text that repeats itself has a low perplexity: read some. The frontier compares means on the same
--   items, so the luckiest of equals are on it; it has no intervals.
with scored as (
    select c.condition, s.scorer, s.scorer_hash, avg(s.value) as score,
           stddev_samp(s.value) / sqrt(count(*)) as score_se, count(*) as texts
    from scores s
    join rows r on r.run = s.run and r.row_id = s.row_id
    join conditions c on c.run = r.run and c.evaluation = r.evaluation and c.config_id = r.config_id
    where s.name = parameter('coherence', 'perplexity') and isfinite(s.value) and r.control = ''
    group by c.condition, s.scorer, s.scorer_hash
),
together as (
    select c.*, s.scorer, s.scorer_hash, s.score, s.score_se, s.texts, u.score as baseline_score,
           e.evaluation as asked, e.effect, e.effect_se, e.effect_p, e.system as asked_system, c.direction * e.effect as push
    from scored s
    join conditions c using (condition)
    left join conditions b on b.run = c.run and b.evaluation = c.evaluation and b.config_id = c.baseline_id
    left join scored u on u.condition = b.condition and u.scorer = s.scorer and u.scorer_hash = s.scorer_hash
    left join config_effects e on e.steering = c.steering
    where c.vector <> ''
)
select run, model, evaluation as texts_of, system, vector, norm, positions, operation, layers, depth, multiplier,
       kl, relative_norm, scorer, scorer_hash, texts, score, score_se, baseline_score, asked as evaluation,
       asked_system, effect, effect_se, effect_p,
       case when push is not null then push > coalesce(max(push) over (
           partition by setting, vector, norm, positions, operation, direction, asked, asked_system,
                        scorer, scorer_hash
           order by score, push desc rows between unbounded preceding and 1 preceding), -1e308) end as frontier
from together
order by all;
