-- Does the vector move the answer, or the letter?
--
-- Parameters: none. A row for each configuration whose items were asked in both letter orders; the unsteered
--   model has multiplier 0.
-- Columns:
--   p_first                      mean share of the first letter, both orders together: 0.5 is no preference
--   letter_shift                 p_first less the unsteered model's
--   effect                       mean effect on the logit difference, both orders together: the letter cancels
--   effect_original, _swapped    in each order alone
--   order_gap, order_gap_se      half of original less swapped: how much of the effect in one order is the
--                                letter's; its standard error over items
--   follows_letter               share of items whose preferred answer changes when the letters are swapped
--   items                        with both orders and two choices
--   norm, relative_norm          the vector's norm; |multiplier| x its length / the stream's
-- Caveat: where letter_shift is large, effects of one order alone are the letter's. Matching answers that are
--   mostly called A in the original order make order_gap and letter_shift the same thing. Items with answers in
--   words, without a swapped order or with more than two choices are not in it.
with answers as (
    select condition, item, letter_order, effect, p_match, baseline_p_match, matching,
           case matching when 0 then p_match else 1 - p_match end as p_first
    from effects where control = '' and choice_count = 2
    union all by name
    select baseline_condition as condition, item, letter_order, 0.0 as effect, baseline_p_match as p_match,
           case matching when 0 then baseline_p_match else 1 - baseline_p_match end as p_first
    from baselines where choice_count = 2
),
orders as (
    select condition, item, avg(p_first) as p_first, avg(effect) as effect,
           avg(effect) filter (letter_order = 'original') as effect_original,
           avg(effect) filter (letter_order = 'swapped') as effect_swapped,
           avg(p_match) filter (letter_order = 'original') as p_original,
           avg(p_match) filter (letter_order = 'swapped') as p_swapped
    from answers group by condition, item
    having count(*) filter (letter_order = 'original') = count(*) filter (letter_order = 'swapped')
),
means as (
    select condition, count(*) as items, avg(p_first) as p_first, avg((effect_original + effect_swapped) / 2) as effect,
           avg(effect_original) as effect_original, avg(effect_swapped) as effect_swapped,
           avg((effect_original - effect_swapped) / 2) as order_gap,
           stddev_samp((effect_original - effect_swapped) / 2) / sqrt(count(*)) as order_gap_se,
           avg(((p_original > 0.5) <> (p_swapped > 0.5))::int) as follows_letter
    from orders group by condition
)
select c.run, c.model, c.evaluation, c.system, c.vector, c.norm, c.positions, c.operation, c.layers, c.depth,
       c.multiplier, m.p_first, m.p_first - b.p_first as letter_shift, m.effect, m.effect_original,
       m.effect_swapped, m.order_gap, m.order_gap_se, m.follows_letter, b.follows_letter as baseline_follows_letter,
       m.items, c.relative_norm
from means m
join conditions c using (condition)
left join conditions o on o.run = c.run and o.evaluation = c.evaluation and o.config_id = c.baseline_id
left join means b on b.condition = o.condition
order by all;
