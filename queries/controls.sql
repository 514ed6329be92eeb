-- Does the vector do more than random vectors of its length, or vectors of shuffled labels?
--
-- Parameters: none. A row for each vector, norm, position and kind of control, over all layers and multipliers.
-- Columns:
--   largest, layers, multiplier   the vector's largest |mean effect on the logit difference|, and where
--   controls                      how many whole control vectors there are: at all of those layers and multipliers,
--                                 with as many good rows as the vector; controls_left_out are not whole
--   control_largest               the largest |mean effect| of each control vector, over the same: its maximum
--   control_median                and its median
--   exceeded_by                   how many control vectors do as much as the vector, or more
--   p_value                       (1 + exceeded_by) / (1 + controls): each vector's own maximum is compared, so
--                                 that looking at many layers and multipliers is paid for
--   outside                       whether the vector exceeds all of 19 or more controls: the 5% level. null with
--                                 fewer, which can't say
--   p_value_there, outside_there  the same at that multiplier alone, over the single layers and on the items that
--                                 all have; null where the run has no statistics as it stands
--   norm, relative_norm           the vector's norm; |multiplier| x its length / the stream's, at its largest
-- Caveat: 19 controls are the fewest for 5%. Shuffled labels leave in what all pairs have in common, random
--   vectors don't: where only the random ones are exceeded, the data's surface may be what steers. It says
--   nothing of size: for that see layer_peaks. Of the two verdicts `outside` is the one that has looked everywhere.
with means as materialized (
    select condition, control, avg(effect) as effect, count(effect) as good
    from effects group by condition, control having count(effect) > 0
),
placed as (
    select m.effect, m.good, c.control, c.control_index, c.condition, c.run, c.model, c.evaluation, c.system,
           c.vector, c.norm, c.positions, c.operation, c.layers, c.multiplier, c.relative_norm, c.curve,
           dense_rank() over (order by c.setting, c.vector, c.norm, c.positions, c.operation,
                              -- two vectors of one name and norm in one run don't exist
                              c.run) as family
    from means m join conditions c using (condition)
),
vectors as (
    select family, arg_max(condition, (abs(effect), -condition)) as condition, max(abs(effect)) as largest,
           count(*) as places
    from placed where control = '' group by family
),
chance as (
    select p.family, p.control, p.control_index, max(abs(p.effect)) as largest,
           count(*) filter (p.good >= v.good) = any_value(o.places) as whole
    from placed p
    join placed v on v.family = p.family and v.control = '' and v.layers = p.layers
                 and v.multiplier is not distinct from p.multiplier
    join vectors o on o.family = p.family
    where p.control in ('random', 'shuffled')
    group by p.family, p.control, p.control_index
),
against as (
    select c.family, c.control, count_if(whole)::bigint as controls, count_if(not whole)::bigint as controls_left_out,
           max(c.largest) filter (whole) as control_largest, median(c.largest) filter (whole) as control_median,
           count_if(whole and c.largest >= v.largest)::bigint as exceeded_by
    from chance c join vectors v using (family) group by all
),
there as (
    select c.curve, b.control, b.p_value, b.outside
    from bands b join conditions c using (run, evaluation, config_id) where b.measure = 'logit_diff'
)
select p.run, p.model, p.evaluation, p.system, p.vector, p.norm, p.positions, p.operation, b.control,
       v.largest, p.layers, p.multiplier, p.relative_norm, b.controls, b.controls_left_out, b.control_largest,
       b.control_median, b.exceeded_by,
       case when b.controls > 0 then (1 + b.exceeded_by) / (1 + b.controls) end as p_value,
       case when b.controls >= 19 then b.exceeded_by = 0 end as outside, t.p_value as p_value_there,
       t.outside as outside_there
from against b
join vectors v using (family)
join placed p on p.condition = v.condition
left join there t on t.curve = p.curve and t.control = b.control and len(p.layers) = 1
order by all;
