"""Which values keys may have together; those of one stand in its row."""

import math

from hmpo_jax.kernels import exponents
from hmpo_jax.kernels import losses
from hmpo_jax.optim import factory

_FILE_KEYS = ('task.prompts', 'task.vocab_size', 'task.response_len')


def _is_file_alone(c):
  given = (c.task.prompts, c.task.vocab_size, c.task.response_len)
  return all(given) if c.task.name == 'file' else not any(given)


def _are_specials_apart(c):
  pad, stop = c.task.pad, c.task.stop
  return (
    c.task.name != 'file' or pad != stop and max(pad, stop) < c.task.vocab_size
  )


def _can_end(c):
  is_endless = c.task.name == 'mapped_copy' or (
    c.task.name == 'file' and c.task.stop < 0
  )
  return not is_endless or not c.rollout.mask_truncated


def _are_minibatches_even(c):
  size = c.rollout.num_prompts * c.rollout.group_size
  return size % c.train.num_minibatches == 0


def _are_microbatches_even(c):
  size = c.rollout.num_prompts * c.rollout.group_size
  return size % (c.train.num_minibatches * c.train.num_microbatches) == 0


def _is_range_apart(c):
  # A token clip knows no mean whose order or place could differ.
  return c.loss.clip == 'sequence' or (
    c.loss.clip_center == 'one' and c.loss.p_clip == math.inf
  )


def _is_clip_open(c):
  """Only a weight may fall to 0: a ratio that is stopped has a log."""
  return c.loss.clip_eps_low < 1 or c.loss.name == 'cispo'


def _is_start_within(c):
  bounded = c.exponent.kind in ('learnable', 'adaptive')
  return not bounded or c.exponent.low <= c.loss.p <= c.exponent.high


def _are_quantiles(c):
  fits = (
    c.exponent.gap_high <= 1 and c.exponent.slow_window <= exponents.MAX_GAPS
  )
  return fits or not c.exponent.gap_quantiles


# Keys of `exponent` that a kind makes use of.
EXPONENT_KEYS = {
  'fixed': (),
  'linear': ('end', 'num_steps'),
  'cosine': ('end', 'num_steps'),
  'learnable': ('rate', 'normalize', 'placebo', 'pull', 'prior', 'low', 'high'),
  'matched': (),
  'adaptive': (
    'low',
    'high',
    'gap_low',
    'gap_high',
    'gap_quantiles',
    'trend',
    'fast_window',
    'slow_window',
    'step_size',
  ),
  'replayed': ('path',),
}


def unused(config, default) -> dict[str, str]:
  """Keys that a choice of the configuration has no use for, with that choice.

  Args:
    config: with the keys and types of the default one.
    default: the default configuration.
  """
  taken = losses.options(config.loss.name)
  found = {
    f'loss.{key}': 'loss.name' for key in losses.OPTIONS if key not in taken
  }
  if 'p' not in taken:
    found['exponent.kind'] = 'loss.name'
  if 'clip_eps_low' not in taken:
    found['tracking.rate'] = 'loss.name'
  used = ('kind', *EXPONENT_KEYS[config.exponent.kind])
  found |= _but('exponent.kind', default.exponent, used)
  if config.tracking.rate == 0:
    found |= _but('tracking.rate', default.tracking, ('rate',))
  if config.task.name != 'file':
    found |= {'task.pad': 'task.name', 'task.stop': 'task.name'}
  found |= _but(
    'optim.name', factory.KEYS, factory.OPTIMIZERS[config.optim.name].keys
  )
  if not config.control.function:
    found |= _but(
      'control.function',
      default.control,
      ('function', 'history', 'agm_iterations'),
    )
  if config.rollout.old_logprobs != 'sampler':
    found['rollout.mismatch_frac'] = 'rollout.old_logprobs'
  if config.rollout.mismatch_frac == 0:
    found['rollout.mismatch_size'] = 'rollout.mismatch_frac'
  if config.reward.function:
    found['reward.kind'] = 'reward.function'
  if config.warm_start.optimizer != 'muon':
    found['warm_start.muon_learning_rate'] = 'warm_start.optimizer'
  if config.optim.decay == 1:
    found['optim.decay_steps'] = 'optim.decay'
  if config.optim.qk_clip == 'off':
    found['optim.qk_alpha'] = 'optim.qk_clip'
  return found


def _but(choice, keys, used):
  """The keys of a choice's section that aren't used, each with the choice."""
  section = choice.partition('.')[0]
  return {f'{section}.{key}': choice for key in keys if key not in used}


def _is_tracked_within(c):
  widths = (c.loss.clip_eps_low, c.loss.clip_eps_high)
  low, high = c.tracking.eps_min, c.tracking.eps_max
  return c.tracking.rate == 0 or all(low <= width <= high for width in widths)


def _ascends(low, high):
  """The rule that a lower bound does not exceed the upper one."""
  is_allowed = lambda c: _value(c, low) <= _value(c, high)
  return (low, high), is_allowed, 'the first must not exceed the second'


def _value(c, key):
  section, name = key.split('.')
  return c[section][name]


# Keys, what must hold of them, and that in words.
JOINT_RULES = (
  (
    ('task.name', *_FILE_KEYS),
    _is_file_alone,
    'the last three must be given with the task file, and unset with others',
  ),
  (
    ('task.pad', 'task.stop', 'task.vocab_size'),
    _are_specials_apart,
    'padding and stop token must differ and be below the vocabulary',
  ),
  (
    ('rollout.mask_truncated', 'task.stop', 'task.name'),
    _can_end,
    'the first must be False where no token ends a response',
  ),
  (
    ('model.num_kv_heads', 'model.num_heads'),
    lambda c: c.model.num_heads % c.model.num_kv_heads == 0,
    'the first must divide the second',
  ),
  (
    ('train.num_minibatches', 'rollout.num_prompts', 'rollout.group_size'),
    _are_minibatches_even,
    'the first must divide the product of the others, the sequences',
  ),
  (
    (
      'train.num_microbatches',
      'train.num_minibatches',
      'rollout.num_prompts',
      'rollout.group_size',
    ),
    _are_microbatches_even,
    'the product of the first two must divide that of the others',
  ),
  (
    ('loss.clip', 'loss.clip_center', 'loss.p_clip'),
    _is_range_apart,
    'the last two must be one and inf unless the first is sequence',
  ),
  (
    ('loss.clip_eps_low', 'loss.name'),
    _is_clip_open,
    'the first must be below 1 unless the loss is cispo',
  ),
  (
    ('exponent.low', 'loss.p', 'exponent.high', 'exponent.kind'),
    _is_start_within,
    'the first three must not fall with a learnable or adaptive order',
  ),
  (
    ('exponent.path', 'exponent.kind'),
    lambda c: c.exponent.kind != 'replayed' or c.exponent.path,
    'the first must name the metrics.jsonl whose orders are replayed',
  ),
  _ascends('exponent.gap_low', 'exponent.gap_high'),
  (
    ('exponent.gap_high', 'exponent.slow_window', 'exponent.gap_quantiles'),
    _are_quantiles,
    f'of quantiles the first must be at most 1, the second {exponents.MAX_GAPS}',
  ),
  _ascends('exponent.fast_window', 'exponent.slow_window'),
  (
    (
      'tracking.eps_min',
      'loss.clip_eps_low',
      'loss.clip_eps_high',
      'tracking.eps_max',
      'tracking.rate',
    ),
    _is_tracked_within,
    'with a rate above 0 both widths must lie between the bounds',
  ),
  _ascends('tracking.eps_min', 'tracking.eps_max'),
  *(
    _ascends(f'control.{name}_low', f'control.{name}_high')
    for name in ('learning_rate', 'epsilon', 'p', 'agm_iterations')
  ),
  (
    ('reward.kl_weight', 'reward.kl_estimator'),
    lambda c: c.reward.kl_estimator != 'none' or c.reward.kl_weight == 0,
    'the weight must be 0 while there is no estimator',
  ),
  (
    ('loss.kl_off_policy', 'loss.kl_estimator'),
    lambda c: c.loss.kl_estimator != 'none' or not c.loss.kl_off_policy,
    'the first must be False while there is no estimator',
  ),
  (
    ('loss.entropy_weight', 'loss.entropy_bonus'),
    lambda c: c.loss.entropy_bonus or c.loss.entropy_weight == 0,
    'the weight must be 0 while the bonus is off',
  ),
  (
    ('loss.length_scale', 'loss.aggregation'),
    lambda c: (
      c.loss.aggregation == 'sequence-mean-token-sum'
      or c.loss.length_scale == 1
    ),
    'the first must be 1. unless the second is sequence-mean-token-sum',
  ),
  (
    ('loss.kl_weight', 'loss.kl_estimator'),
    lambda c: c.loss.kl_estimator != 'none' or c.loss.kl_weight == 0,
    'the weight must be 0 while there is no estimator',
  ),
  (
    ('optim.qk_clip', 'model.qk_norm'),
    lambda c: c.optim.qk_clip != 'weights' or not c.model.qk_norm,
    'the clip must be gain or off with QK-norm, which undoes any rescaling of '
    'query and key weights, so that the clip would shrink them without end',
  ),
  (
    ('optim.qk_clip', 'model.qk_norm'),
    lambda c: c.optim.qk_clip != 'gain' or c.model.qk_norm,
    'gain rescales the gains of the norms, which the second must switch on',
  ),
  (
    ('warm_start.query_scale', 'model.qk_norm'),
    lambda c: c.warm_start.query_scale == 1 or not c.model.qk_norm,
    'the first must be 1. with QK-norm, which undoes it',
  ),
)
