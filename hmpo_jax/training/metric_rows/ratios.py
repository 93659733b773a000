"""Metrics of the ratios, their means and orders, the clip and the loss."""

import functools

from hmpo_jax.training.metric_rows import row

_ratio = functools.partial(
  row.Row, group='ratios', needs='rows', section='ratios'
)
_agm = functools.partial(row.Row, group='agm', needs='rows', section='means')
_exponent = functools.partial(row.Row, group='agm', board='quiet')
_learning = functools.partial(row.Row, group='learning', section='ratios')

RATIOS = (
  _ratio(
    'ratio/mean ratio/std ratio/min ratio/max',
    'ratio',
    "of the rows' means M_i, over the updates of a step",
    reduce='mean mean min max',
    report={
      'ratio/mean:mean': ('mean ratio', '.4f'),
      'ratio/std:mean': ('its deviation', '.4f'),
    },
  ),
  _ratio(
    'ratio/token/mean ratio/token/std ratio/token/min ratio/token/max',
    'ratio',
    "of the tokens' ratios",
    reduce='mean mean min max',
  ),
  _ratio(
    'ratio/clamped_frac',
    'share',
    'tokens whose log-ratio is beyond `loss.log_ratio_max`; largest of the '
    'updates',
    reduce='max',
  ),
  _ratio(
    'ratio/first_update_abs_log',
    'nats',
    'largest absolute log-ratio of the first update: 0 unless the sampler lags',
    bounds='not_negative',
  ),
  _ratio(
    'ratio/recompute_gap',
    'nats',
    "by how much two passes of the same policy differ; the first update's "
    'ratios are 1 in spite of it',
    reduce='max',
    bounds='not_negative',
  ),
  _ratio(
    'log_ratio/mean log_ratio/abs_max',
    'nats',
    "mean of the tokens' log-ratios, and the largest absolute one",
    reduce='mean max',
    bounds='any not_negative',
  ),
  _ratio(
    'log_ratio/row_variance',
    'nats squared',
    'of the log-ratios within a row, mean over rows',
    section='means',
    report={
      'log_ratio/row_variance:mean': (
        'var(x), nats²',
        '.4f',
        'agm/log_gap:mean',
      )
    },
  ),
  _ratio(
    'log_ratio/skew',
    '',
    'third standardised moment of the log-ratios within a row, mean over rows',
  ),
  _ratio(
    'log_ratio/last_update_sigma',
    'nats',
    'root mean within-row variance of the log-ratios in the last update',
    bounds='not_negative',
    section='gradients',
    report={
      'log_ratio/last_update_sigma:mean': ('sigma, last update, nats', '.3f')
    },
  ),
  _ratio(
    'token_weight/ess',
    'share',
    "effective sample size 1 / (n sum w^2) of the weights of a row's n "
    'tokens in its gradient',
  ),
  _ratio(
    'token_weight/entropy token_weight/max',
    'nats, share',
    "entropy and largest of the weights of a row's tokens in its gradient",
    reduce='mean max',
    bounds='not_negative share',
  ),
  _ratio(
    'mean/p mean/dlog_dp',
    'order, nats',
    'order in use, and d log M_p / dp, means over rows',
    section='means',
    report={
      'mean/p:first': ('p, first step', '.2f', 'agm/convergence_rate:mean'),
      'mean/p:last': ('p, last step', '.2f', 'mean/p:first'),
    },
  ),
  _agm(
    'agm/arithmetic agm/geometric agm/harmonic',
    'ratio',
    "arithmetic, geometric and harmonic mean of a row's ratios before any "
    'clip, mean over rows',
    report={
      'agm/arithmetic:mean': ('A', '.4f'),
      'agm/harmonic:mean': ('H', '.4f'),
    },
  ),
  _agm(
    'agm/gap agm/log_gap',
    'ratio, nats',
    'A - H and log A - log H: how far the ratios of a row scatter',
    bounds='not_negative',
    report={
      'agm/gap:mean': ('gap A - H', '.4f'),
      'agm/log_gap:mean': ('log A - log H, nats', '.4f'),
    },
  ),
  _agm(
    'agm/arithmetic_iterates agm/harmonic_iterates',
    'ratio',
    'a_0 to a_K and h_0 to h_K of the arithmetic-harmonic iteration in this '
    'step',
    board='-',
  ),
  _agm(
    'agm/arithmetic_iterates_clip agm/harmonic_iterates_clip',
    '',
    'the same of the means in units of the clip range',
    board='-',
    bounds='not_negative',
  ),
  _agm(
    'agm/convergence_rate',
    'share',
    '1 - mean over the iterates of (a - h) / (a + h) of the '
    'arithmetic-harmonic iteration',
    report={'agm/convergence_rate:mean': ('A-H convergence rate', '.4f')},
  ),
)

LOSS = (
  _exponent('exponent/p', 'order', 'order of the mean after the step'),
  _exponent(
    'exponent/gradient exponent/gradient_snr',
    '',
    'dJ/dp and its signal-to-noise ratio over rows',
  ),
  _exponent(
    'exponent/at_bound',
    '0 or 1',
    'whether a bound holds the order',
    reduce='max',
  ),
  _exponent('exponent/decision', '', 'of the adaptive order: -1 down, 1 up'),
  _exponent(
    'exponent/gap_fast exponent/gap_slow exponent/gap_trend',
    'nats, nats, share',
    'fast and slow average of log A - log H, and fast / slow - 1',
    bounds='any',
  ),
  _exponent(
    'exponent/ignored_gaps exponent/ignored_gradients',
    'count',
    'gaps and gradients that were not finite',
  ),
  _ratio(
    'clip/low_frac clip/high_frac',
    'share',
    'rows stopped below 1 - eps (A < 0), above 1 + eps (A > 0); of losses '
    'that clip tokens, mean over rows of token fractions',
    report={
      'clip/low_frac:third_1': ('clipped low, 1st third', '.1%'),
      'clip/low_frac:third_2': ('low, 2nd', '.1%'),
      'clip/low_frac:third_3': ('low, 3rd', '.1%'),
      'clip/high_frac:third_1': ('clipped high, 1st third', '.1%'),
      'clip/high_frac:third_2': ('high, 2nd', '.1%'),
      'clip/high_frac:third_3': ('high, 3rd', '.1%'),
    },
  ),
  _ratio(
    'clip/dual_frac',
    'share',
    'rows, or tokens in the same way, stopped by the dual clip',
    board='quiet',
  ),
  _ratio(
    'clip/outside_frac',
    'share',
    'rows, or tokens in the same way, whose ratio lies outside the range on '
    'either side, whatever the sign of A: stopped or not; 0 of losses '
    'without a range',
  ),
  _ratio(
    'clip/eps_low clip/eps_high',
    'ratio',
    'how far below and above 1 the clip range in use reaches',
    needs='-',
  ),
  _learning(
    'loss/total',
    'reward',
    'the loss with its KL and entropy terms',
    bounds='any',
  ),
  _learning(
    'loss/live_frac',
    'share',
    'rows that pass a gradient',
    report={'loss/live_frac:mean': ('rows with a gradient', '.1%')},
  ),
  _learning(
    'policy/entropy',
    'nats',
    'of the policy, mean over tokens',
    needs='rows',
    bounds='not_negative',
  ),
  _ratio(
    'kl_old/k1 kl_old/k3',
    'nats per token',
    'estimates of the KL to the sampler',
    bounds='any not_negative',
  ),
  _learning(
    'kl/reference',
    'nats per token',
    'KL to the warm start in the loss, where there is one',
  ),
  _learning(
    'kl/wide_gap_frac',
    'share',
    'tokens whose gap to the warm start is beyond the bound of the '
    'estimator, where there is one',
    reduce='max',
  ),
  row.Row(
    'control/learning_rate control/epsilon control/p control/agm_iterations',
    '',
    'settings that held in the step, where there is a controller, of those '
    'that it can change',
  ),
)
