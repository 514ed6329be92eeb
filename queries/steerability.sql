-- How evenly does the vector move single items, and how many does it move the wrong way?
--
-- Parameters: none. A row for each vector, norm, position and layer; `item_slopes` has the items.
-- Columns:
--   multipliers             at how many, the unsteered 0 among them
--   slope, slope_sd         of an item's logit difference over the multipliers: mean and spread over items
--   slope_se                the mean's standard error
--   slope_low, slope_high   the tenth and the ninetieth percentile of the items
--   share_wrong_way         share of items whose slope is below 0
--   rank_correlation        mean over items of Spearman's between multiplier and logit difference
--   residual                mean over items of the root mean square of what a line leaves over
--   norm, relative_norm_1   the vector's norm; its length / the stream's, that is at multiplier 1
-- Caveat: an item may be counted as moved the wrong way by noise alone: with few multipliers, or a small slope
--   beside `residual`, a share near one half is what no effect looks like. A line is not the shape at large
--   multipliers: see multiplier_curves. No intervals.
with means as (
    select dose, count(*) as items, max(points) as multipliers, avg(slope) as slope, stddev_samp(slope) as slope_sd,
           slope_sd / sqrt(count(*)) as slope_se, quantile_cont(slope, 0.1) as slope_low,
           quantile_cont(slope, 0.9) as slope_high, avg((slope < 0)::int) as share_wrong_way,
           avg(rank_correlation) as rank_correlation, avg(residual) as residual
    from item_lines group by dose
)
select c.run, c.model, c.evaluation, c.system, c.vector, c.norm, c.positions, c.operation, c.layers, c.depth,
       m.multipliers, slope, slope_sd, slope_se, slope_low, slope_high, share_wrong_way, rank_correlation,
       residual, items, c.vector_norm / nullif(c.stream_norm, 0) as relative_norm_1
from means m
join (select distinct on (dose) * from conditions where control = '' and vector <> '') c using (dose)
order by all;
