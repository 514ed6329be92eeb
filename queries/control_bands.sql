-- Where does the vector's effect leave the band of the controls, layer by layer?
--
-- Parameters: none. A row for each layer, multiplier and kind of control.
-- Columns:
--   effect                     the vector's mean effect on the logit difference
--   control_low, control_high  the least and the greatest of the control vectors' mean effects there
--   control_mean, control_sd   their mean and standard deviation
--   controls                   how many there are
--   norm, relative_norm        the vector's norm; |multiplier| x its length / the stream's, null where not measured
-- Caveat: for drawing, not for a verdict. Of 30 layers some leave a band by chance: `controls` compares each
--   vector's own largest effect, which is what a claim of a peak needs.
with means as (
    select condition, control, avg(effect) as effect from effects
    group by condition, control having count(effect) > 0
),
placed as (
    select m.effect, c.*, dense_rank() over (order by c.setting, c.vector, c.norm, c.positions, c.operation,
                                             c.layers, c.multiplier) as place
    from means m join conditions c using (condition)
),
against as (
    select place, control, min(effect) as control_low, max(effect) as control_high, avg(effect) as control_mean,
           stddev_samp(effect) as control_sd, count(*) as controls
    from placed where control in ('random', 'shuffled') group by place, control
)
select p.run, p.model, p.evaluation, p.system, p.vector, p.norm, p.positions, p.operation, p.layers, p.depth,
       p.multiplier, p.relative_norm, p.effect, b.control, b.control_low, b.control_high, b.control_mean,
       b.control_sd, b.controls
from placed p join against b using (place)
where p.control = ''
order by all;
