-- Are the effects larger than what 16 bits round?
--
-- Parameters: none. A row for each vector, norm, position and operation of an evaluation in bfloat16 or float16.
-- Columns:
--   dtype          what the run computes in
--   measured       how many effects were computed again in float32, with Hugging Face and the same vectors
--   rounding       by how much they differ from the run's: the root of their mean square, for an effect of one question
--   mean_rounding  and on average: what all questions have in common is not averaged away by more questions
--   largest, layers, multiplier   the vector's largest |mean effect on the logit difference|, and where
--   norm, relative_norm   the vector's norm; |multiplier| x its length / the stream's, at its largest
--   below          how many of the vector's configurations have a smaller mean effect than `rounding`
--   configurations  how many there are
--   verdict        the same in words
-- Caveat: an effect below `rounding` is not shown to be one of the vector's, whatever its interval over questions.
--   One above it may still be chance: see controls.
with sizes as (
    select r.run, r.model, r.evaluation, e.vector, e.norm, e.positions, e.operation, r.dtype, r.measured,
           r.rounding, r.mean_rounding, max(abs(e.effect)) as largest, arg_max(e.layers, abs(e.effect)) as layers,
           arg_max(e.multiplier, abs(e.effect)) as multiplier,
           arg_max(e.relative_norm, abs(e.effect)) as relative_norm,
           count(*) filter (abs(e.effect) < r.rounding) as below, count(*) as configurations
    from roundings r join config_effects e using (run, model, evaluation)
    where e.effect is not null
    group by all
)
select *, case when below = configurations then 'every effect lies below what ' || dtype || ' rounds'
               when below > 0 then below || ' of ' || configurations || ' effects lie below what ' || dtype || ' rounds'
               else 'every effect is larger than what ' || dtype || ' rounds' end as verdict
from sizes
order by run, model, evaluation, vector, norm, positions, operation
