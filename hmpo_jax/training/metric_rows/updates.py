"""Metrics of gradients, attention logits and updates."""

import functools

from hmpo_jax.training.metric_rows import row

_mechanism = functools.partial(
  row.Row, group='learning', stamp='mechanism/step', section='gradients'
)
_attention = functools.partial(row.Row, group='stability', section='stability')
_learning = functools.partial(row.Row, group='learning', section='gradients')

GRADIENTS = (
  _mechanism(
    'mechanism/cosine mechanism/cosine_unclipped',
    '',
    'cosine of the gradients for p = 0 and p = -1, with and without the '
    'clip: at 1 the choice of the mean is void',
    bounds='cosine',
    report={
      'mechanism/cosine_unclipped:mean': (
        'cosine, p = 0 and -1, no clip',
        '.3f',
      ),
      'mechanism/cosine:mean': (
        'p = 0 and -1, clipped',
        '.3f',
        'mechanism/cosine_unclipped_p1_pm1:mean',
      ),
    },
  ),
  _mechanism(
    'mechanism/cosine_*',
    '',
    'cosine of the gradients of two others of p1, p0, pm1 and current, the '
    'loss of the run with the order in use',
    bounds='cosine',
    report={
      'mechanism/cosine_unclipped_p1_p0:mean': ('p = 1 and 0, no clip', '.3f'),
      'mechanism/cosine_unclipped_p1_pm1:mean': (
        'p = 1 and -1, no clip',
        '.3f',
      ),
      'mechanism/cosine_current_p0:mean': (
        'its own loss and p = 0, clipped',
        '.3f',
      ),
    },
  ),
  _mechanism(
    'mechanism/norm_ratio',
    '',
    'length of the gradient for p = -1 over that for p = 0, without a clip',
    bounds='not_negative',
    report={'mechanism/norm_ratio:mean': ('length, p = -1 over p = 0', '.3f')},
  ),
  _mechanism(
    'mechanism/norm_ratio_*',
    '',
    'length of the gradient of another of them over that for p = 0, with a '
    'clip or `unclipped`',
    bounds='not_negative',
  ),
  _mechanism(
    'mechanism/mask_disagreement_*',
    'share',
    "rows whose gradient one of two losses stops and the other doesn't",
    report={
      'mechanism/mask_disagreement_p0_pm1:mean': (
        'clip differs, p = 0 and -1',
        '.1%',
      ),
      'mechanism/mask_disagreement_p1_p0:mean': (
        'clip differs, p = 1 and 0',
        '.1%',
      ),
    },
  ),
  _mechanism(
    'mechanism/sigma',
    'nats',
    'sigma of the log-ratios of the batch whose gradients are compared',
    bounds='not_negative',
  ),
  _mechanism(
    'mechanism/gradient_variance_*',
    'gradient squared',
    "trace of the covariance over rows of the rows' gradients under p1, p0, "
    'pm1 and current, with a clip or `unclipped`',
    report={
      'mechanism/gradient_variance_unclipped_p1:mean': (
        'variance over rows, p = 1, no clip',
        '.3g',
      ),
      'mechanism/gradient_variance_unclipped_p0:mean': ('p = 0', '.3g'),
      'mechanism/gradient_variance_unclipped_pm1:mean': ('p = -1', '.3g'),
      'mechanism/gradient_variance_current:mean': (
        'its own loss, clipped',
        '.3g',
      ),
    },
  ),
  _mechanism(
    'mechanism/sigma_sqrt_n',
    'nats',
    'sigma sqrt(n) of that batch, n the harmonic mean of the tokens of its '
    'rows: what an order moves a clip by is half of it, in deviations of '
    'log M_0',
    bounds='not_negative',
    report={'mechanism/sigma_sqrt_n:mean': ('sigma sqrt(n), nats', '.3f')},
  ),
  _mechanism(
    'mechanism/shift_over_spread',
    '',
    'mean of log M_0 - log M_-1 over the deviation of log M_0 over rows: '
    'half of sigma sqrt(n) if tokens of a row were independent',
    bounds='not_negative',
    report={
      'mechanism/shift_over_spread:mean': ('mask shift over spread', '.3f')
    },
  ),
  _mechanism(
    'mechanism/kurtosis',
    '',
    'excess kurtosis of the log-ratios around the mean of their row, all '
    'tokens of that batch together: 0 of a Gaussian',
    bounds='kurtosis',
    report={'mechanism/kurtosis:mean': ('excess kurtosis', '.2f')},
  ),
  _mechanism(
    'mechanism/step',
    'steps',
    'when the values under `mechanism/` were measured',
    board='-',
    stamp='-',
  ),
)

OPTIMIZER = (
  _attention(
    'qk/max_logit qk/max_logit_per_head qk/max_logit_per_update',
    'logit',
    "largest visible attention logit, of a step's training passes",
    board='scalar histogram -',
    report={'qk/max_logit:max': ('largest attention logit', '.1f')},
  ),
  _attention(
    'qk/entropy qk/entropy_min qk/entropy_per_head',
    'nats',
    'entropy of the attention weights, mean over the queries of the '
    'training passes that are no padding: of all heads of all layers, of '
    'the sharpest one in any update, and of each; with '
    '`model.attention_entropy`',
    reduce='mean min mean',
    board='scalar scalar histogram',
    bounds='not_negative',
    report={
      'qk/entropy:mean': ('attention entropy, nats', '.3f'),
      'qk/entropy_min:min': (
        'attention entropy of the sharpest head, least of an update, nats',
        '.3f',
      ),
    },
  ),
  _attention(
    'qk/over_monitor_tau_frac',
    'share',
    'updates with a logit above `optim.monitor_tau`, skipped ones included, '
    'whatever `optim.qk_clip` is',
    reduce='mean_of_all',
    report={
      'qk/over_monitor_tau_frac:mean': (
        'updates with a logit above monitor_tau',
        '.1%',
      )
    },
  ),
  _attention(
    'qk/exploded',
    '0 or 1',
    'whether ten updates in a row, of those that were made, had one, at any '
    'time so far',
    reduce='max',
    report={'qk/exploded:max': ('runs that exploded', '.0%')},
  ),
  _attention(
    'qk/clipped_frac',
    'share',
    'updates in which the QK-clip changed weights',
    report={'qk/clipped_frac:mean': ('updates that QK-clip changed', '.1%')},
  ),
  _attention(
    'qk/factor_min',
    'factor',
    'smallest one by which the QK-clip scaled the logits of a head; 1 for none',
    reduce='min',
  ),
  _attention(
    'qk/heads_ever_clipped_frac',
    'share',
    'heads of all layers that were clipped at least once',
    reduce='max',
  ),
  _attention(
    'qk/clip_drift_k3 qk/clip_drift_abs_max',
    'nats per token, nats',
    "KL of the policy before to that after the last update's clip, and the "
    "largest change of a token's log-probability; where there is a clip",
    stamp='mechanism/step',
    bounds='not_negative',
    report={
      'qk/clip_drift_k3:mean': (
        'KL that the clip caused, nats per token',
        '.2g',
      )
    },
  ),
  _learning(
    'update/norm update/cosine grad/norm',
    'parameters',
    'size of the update, its cosine with the negative gradient, size of the '
    'gradient',
    needs='- signal -',
    bounds='not_negative cosine not_negative',
    report={
      'update/norm:mean': ('length of the update', '.4f'),
      'update/cosine:mean': ('cosine, update and -gradient', '.3f'),
    },
  ),
  _attention(
    'skipped/*',
    'count',
    'updates skipped, by cause: `reward`, `logprob`, `statistic`, `loss`, '
    '`gradient`, `update`; `no_signal` is a minibatch without a live row; '
    '`in_a_row` counts the last ones for a numerical cause',
    report={'skipped/*:sum': ('skipped: *', '.1f', 'nonfinite_values:sum')},
  ),
  row.Row(
    'nonfinite/*',
    'count',
    'log-probabilities and advantages that were not finite, over all updates',
    reduce='sum_of_all',
  ),
  row.Row(
    'nonfinite_values',
    'count',
    'values of this record that were not finite',
    section='stability',
    report={'nonfinite_values:sum': ('values not finite', '.1f')},
  ),
)
