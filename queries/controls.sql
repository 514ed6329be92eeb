-- Does the vector do more than random vectors of its length, those of shuffled labels, and other behaviours' vectors?
--
-- Parameters: none. A row for each vector, norm, position and kind of control, over all layers and multipliers.
-- Needs: statistics
-- Columns:
--   largest, layers, multiplier   the vector's largest |mean effect on the logit difference|, and where
--   kl                            the KL dose that it and its controls have there; null where multipliers were given
--   controls                      how many control vectors count: those that are whole, with an effect in every row in
--                                 which the vector has one, at all of its layers and multipliers; and distinct, stored
--                                 as another vector than the steered one and than every other one that counts
--   controls_left_out             how many control vectors don't count
--   control_largest               the largest |mean effect| of each that counts, over the same rows: their maximum
--   control_median                and their median
--   exceeded_by                   how many control vectors do as much as the vector, or more
--   p_value                       (1 + exceeded_by) / (1 + controls): each vector's own maximum is compared, so
--                                 that looking at many layers and multipliers is paid for
--   outside                       whether the vector exceeds all of 19 or more controls: the 5% level. null with
--                                 fewer, which can't say
--   verdict                       the same in words
--   headline                      whether it is the one to quote: the verdict of the strictest kind of control
--   p_value_there, outside_there  the same at that multiplier alone, over the single layers and on the items that
--                                 all have; null where the run has no statistics as it stands
--   norm, relative_norm           the vector's norm; |multiplier| x its length / the stream's, at its largest
-- Caveat: 19 controls are the fewest for 5%. Shuffled labels leave in what all pairs have in common, random
--   vectors don't: where only the random ones are exceeded, the data's surface may be what steers. Where unrelated
--   vectors do as much, any contrast may do it, and nothing is shown of this one. A verdict says nothing of size:
--   for that see layer_peaks. Of the two verdicts `outside` is the one that has looked everywhere.
with there as (
    select c.family, b.control, c.kl, c.level, b.p_value, b.outside
    from bands b join conditions c using (run, evaluation, config_id) where b.measure = 'logit_diff'
)
select c.run, c.model, c.evaluation, c.system, c.vector, c.norm, c.positions, c.operation, v.control,
       v.largest, c.layers, c.multiplier, c.kl, c.relative_norm, v.controls, v.controls_left_out, v.control_largest,
       v.control_median, v.exceeded_by, v.p_value, v.outside, v.verdict, v.headline,
       t.p_value as p_value_there, t.outside as outside_there
from control_verdicts v
join conditions c using (condition)
left join there t on t.family = v.family and t.control = v.control
                 and t.kl is not distinct from c.kl and t.level is not distinct from c.level and len(c.layers) = 1
order by all;
