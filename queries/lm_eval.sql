-- What do lm-eval's tasks measure, unsteered and under each steering?
--
-- Parameters: metric, a regular expression for the metrics (acc|exact_match). Empty without an evaluation of the kind
--   lm_eval whose run has come to its end.
-- Columns:
--   evaluation, metric      the task, and the metric by the harness's name, behind a comma its filter
--   documents               how many documents count
--   value, se, low, high    the metric over all documents, as the harness has it; its standard error; 95% by the
--                           normal. A perplexity's se is its logarithm's
--   paired, baseline        how many documents the unsteered model has too; the metric that it has on these
--   worse, worse_se,        how much worse steering makes it, paired by document, with 95% by the normal; below 0 it
--   worse_low, worse_high   is better. Of a perplexity it is the logarithm of the ratio
--   norm, relative_norm     the vector's norm; |multiplier| x its length / the stream's
-- Caveat: documents without a number, since their row failed, are left out. A group of tasks is one evaluation, in
--   which each document counts once. Few documents have intervals that are too narrow.
select c.run, c.model, c.evaluation, t.metric, c.system, c.vector, c.norm, c.positions,
       c.operation, c.layers, c.depth, c.multiplier, c.relative_norm, t.documents,
       case when of_logarithms then exp(x) else x end as value, x_se as se,
       case when of_logarithms then exp(x - 1.96 * x_se) else x - 1.96 * x_se end as low,
       case when of_logarithms then exp(x + 1.96 * x_se) else x + 1.96 * x_se end as high, t.paired,
       case when of_logarithms then exp(t.baseline) else t.baseline end as baseline,
       case when c.vector <> '' then t.worse end as worse, case when c.vector <> '' then t.worse_se end as worse_se,
       case when c.vector <> '' then t.worse - 1.96 * t.worse_se end as worse_low,
       case when c.vector <> '' then t.worse + 1.96 * t.worse_se end as worse_high
from task_means t
join conditions c using (condition)
where c.control in ('', 'system') and regexp_matches(t.metric, parameter('metric', ''))
order by all;
