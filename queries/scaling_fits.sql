-- Which curve over the models' sizes do the peaks follow?
--
-- Parameters: none. Give all models' runs at once; a row for each vector, norm, position, multiplier, measure and
--   family of curves. Empty where the runs have no statistics.
-- Needs: statistics, fits over models
-- Columns:
--   measure                 what the effects are of: logit_diff or p_match
--   family                  exponential: offset + scale exp(-rate x); power: scale x^-rate;
--                           log_linear: offset + scale ln(x); x in billions of parameters
--   curve                   the fitted one; offset_low, offset_high, scale_low, rate_low and so on: 95% intervals
--   preferred               whether the models prefer this family to both others; null where they can't tell
--   points, residual_df     models that were fitted; what is left over after the family's parameters
--   aicc, loo_rmse          Akaike's criterion, corrected for few points; the error where each model is predicted
--                           from the others: for both, less is better
--   why                     why a column is null
--   billions, effects, depths   the points: sizes, held-out peaks and their depths
--   kl, level               the KL dose and its sign, where each model has a multiplier of its own
--   norm, relative_norms    the vector's norm; |multiplier| x its length / the stream's at each peak
--   models_left_out         models without a held-out peak, or whose name doesn't say its size
-- Caveat: each model counts alike, whatever its own interval. A fit through as many points as it has parameters
--   goes through all of them, and says nothing. Where relative_norms differ, size is not all that does.
select run, evaluation, measure, system, vector, norm, positions, operation, multiplier, kl, level, family,
       formula(family, "offset", scale, rate) as curve, preferred, points, residual_df, "offset", offset_low,
       offset_high, scale, scale_low, scale_high, rate, rate_low, rate_high, aicc, loo_rmse, why, models,
       billions, effects, depths, relative_norms, models_left_out
from scaling
order by all;
