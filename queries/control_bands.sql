-- Where does the vector's effect leave the band of the controls, layer by layer?
--
-- Parameters: none. A row for each layer, multiplier and kind of control.
-- Columns:
--   effect                     the vector's mean effect on the logit difference
--   control_low, control_high  the least and the greatest of the control vectors' mean effects there
--   control_mean, control_sd   their mean and standard deviation
--   controls                   how many control vectors there are, of those that count (see `controls`)
--   kl                         the KL dose of the vector and of each control there; null where multipliers were given
--   norm, relative_norm        the vector's norm; |multiplier| x its length / the stream's, null where not measured
-- Caveat: for drawing, not for a verdict. Of 30 layers some leave a band by chance: `controls` compares each
--   vector's own largest effect, which is what a claim of a peak needs.
with bands as (
    select place, control, min(effect) as control_low, max(effect) as control_high, avg(effect) as control_mean,
           stddev_samp(effect) as control_sd, count(*) as controls
    from control_effects where counted and effect is not null group by place, control
)
select e.run, e.model, e.evaluation, e.system, e.vector, e.norm, e.positions, e.operation, e.layers, e.depth,
       e.multiplier, e.kl, e.relative_norm, e.effect, b.control, b.control_low, b.control_high, b.control_mean,
       b.control_sd, b.controls
from config_effects e
join conditions c using (condition)
join bands b on b.place = c.place
order by all;
