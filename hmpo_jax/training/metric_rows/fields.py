"""What repeats metrics under other names: for controllers, for TensorBoard."""

import functools

from hmpo_jax.training.metric_rows import row

_field = functools.partial(row.Row, board='-')
_ratio = functools.partial(row.Row, unit=None, group='ratios')
_attention = functools.partial(row.Row, unit=None, group='stability')

# That of the iterates says more than the row of the metrics.
CONTROLLERS = (
  _field(
    'step',
    'integer',
    'finished steps, this one included: 1, 2, 3, ...',
    source='the loop',
  ),
  _field(
    'arithmetic_history',
    'list, ratio',
    'A of the last steps, newest last: the arithmetic mean of the ratios '
    'before any clip, in each row, then mean over rows and over the '
    'updates of a step',
    source='`agm/arithmetic` of the last records',
  ),
  _field(
    'harmonic_history',
    'list, ratio',
    'H of the same steps',
    source='`agm/harmonic`',
  ),
  _field(
    'arithmetic_history_clip harmonic_history_clip',
    'lists, no unit',
    'the same of A^(1/w) and H^(1/w), w half the width of the clip range '
    'in nats: 1 is on-policy, e and 1/e are the edges of a range that is '
    'even in the logarithm, a gap of order 1 is one that the clip can '
    'tell. Logs are bounded at +-8',
    source='first entries of the iterates below',
  ),
  _field(
    'agm/arithmetic_iterates agm/harmonic_iterates',
    'lists, ratio',
    'of *one* step, a_0 to a_K and h_0 to h_K of the arithmetic-harmonic '
    'iteration in each row, then mean over rows and updates; a_0 is A, '
    'h_0 is H',
    source='`kernels/agm.py`',
  ),
  _field(
    'agm/arithmetic_iterates_clip agm/harmonic_iterates_clip',
    'lists, no unit',
    'the iteration from A^(1/w) and H^(1/w)',
    source='`kernels/agm.py`',
  ),
  _field(
    'td_mean',
    "standard deviations of the group's reward; reward with "
    '`advantage.scale=none`',
    'mean of the advantages of the rollout: 0 but for rounding with a baseline',
    source='`advantage/mean`',
  ),
  _field('td_var', 'its square', 'their variance', source='`advantage/std`'),
  _field(
    'q_rel_change',
    'none',
    'relative change of the mean reward R, the estimate of the return, '
    'from the step before, over the larger of that one and 1e-8; 0 in '
    'step 1',
    source='`reward/mean`',
  ),
  _field(
    'train_reward_mean',
    'reward, 0 to 1',
    'R, mean reward of the rollout',
    source='`reward/mean`',
  ),
  _field(
    'eval_reward',
    'reward, 0 to 1',
    'of greedy responses to held-out prompts, when last measured '
    '(`eval/step`); it stands still in between',
    stamp='eval/step',
    source='`eval/reward`',
  ),
  _field(
    'eval_is_new',
    'boolean',
    'this step measured `eval_reward`',
    source='`eval/step`',
  ),
  _field(
    'muon_clip_active',
    'boolean',
    'the QK-clip changed an update of this step',
    source='`qk/clipped_frac`',
  ),
  _field(
    'muon_clip_rate',
    'share',
    "of the step's updates that it changed",
    source='`qk/clipped_frac`',
  ),
)

# Those of heads say what their histograms are of.
BOARD = (
  _ratio(
    'histogram/log_row_ratio',
    meaning='log of the ratio M_i of each row, nats, over all updates of a '
    'step; at the ends what is beyond a factor of e',
    reduce='sum',
  ),
  _ratio(
    'histogram/log_token_weight',
    meaning='log of n times the weight of each of n tokens in the gradient '
    'of its row: 0 where all weigh the same; at the ends what is beyond a '
    'factor of e',
    reduce='sum',
  ),
  _attention(
    'qk/max_logit_per_head',
    meaning='largest visible attention logit of each head of each layer',
  ),
  _attention(
    'qk/entropy_per_head',
    meaning='entropy of the attention weights of each head of each layer, nats',
  ),
  _attention(
    'qk/tau',
    meaning='what the QK-clip holds attention logits to: optim.tau',
  ),
  _attention(
    'qk/monitor_tau',
    meaning='what attention logits are counted above: optim.monitor_tau',
  ),
  row.Row('margin/*', None, 'held-out reward less and plus its standard error'),
)
