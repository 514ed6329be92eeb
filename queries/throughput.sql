-- How fast did the run go?
--
-- Parameters: none. A row for each start of the run, model and kind of question.
-- Columns:
--   seconds               from the first row handed to the engine to the last result, gaps included; null where
--                         the machine's clock was set back, so that no time is left
--   rows_a_second, good   results in that time; those that are good
--   prompt_tokens         processed and cached together; cached_share is the part that the prefix cache served
--   computed_a_second     prompt tokens that were computed, and generated ones, a second
--   generated_a_second    generated tokens a second
--   configs               how many configurations were under way, engine and vllm_version what computed them
--   median_wait           the median row's seconds from being handed over to its result, queueing included
-- Caveat: loading the model and extracting vectors lie before the first row and are not counted (events.jsonl
--   has them). Rows that were computed again count in the start whose result stands. Kinds that ran at the
--   same time share the machine. Rows whose condition doesn't hold are left out: nothing was computed for them.
select run, run_session, model, kind, engine, vllm_version, count(*) as rows, count_if(status = 'ok')::bigint as good,
       nullif(greatest(epoch(max(finished_at) - min(started_at)), 0), 0) as seconds,
       count(*) / seconds as rows_a_second,
       sum(prompt_tokens)::bigint as prompt_tokens, sum(cached_tokens) / nullif(sum(prompt_tokens), 0) as cached_share,
       (sum(prompt_tokens) - sum(cached_tokens) + sum(completion_tokens)) / seconds as computed_a_second,
       sum(completion_tokens) / seconds as generated_a_second,
       approx_count_distinct(config_id) as configs,
       approx_quantile(epoch(finished_at) - epoch(started_at), 0.5) filter (finished_at >= started_at) as median_wait,
       min(started_at) as began, max(finished_at) as ended
from rows
where condition_met is distinct from false
group by run, run_session, model, kind, engine, vllm_version
order by began, kind;
