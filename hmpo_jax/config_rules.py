"""Which values a configuration may hold, one key at a time and together."""

import math

TASKS = ('sort', 'addition', 'file')
LOSSES = ('power_mean', 'grpo')
KL_ESTIMATORS = ('none', 'k1', 'k2', 'k3')
OPTIMIZERS = ('muon_clip', 'adamw')
QK_CLIPS = ('off', 'weights')


def _at_least(low):
  return lambda x: low <= x, f'at least {low}'


def _finite_at_least(low):
  return lambda x: low <= x < math.inf, f'finite and at least {low}'


def _one_of(*choices):
  return lambda x: x in choices, f'one of {", ".join(map(str, choices))}'


_POSITIVE = (lambda x: 0 < x < math.inf, 'finite and above 0')
_POSITIVE_OR_INF = (lambda x: x > 0, 'above 0 (inf = off)')
_OPEN_UNIT = (lambda x: 0 < x < 1, 'above 0 and below 1')
_MOMENTUM = (lambda x: 0 <= x < 1, 'at least 0 and below 1')

RULES = tuple((key, *rule) for key, rule in (
    ('seed', (lambda x: 0 <= x < 2**31, 'from 0 to 2**31 - 1')),
    ('num_steps', _at_least(1)),
    ('task.name', _one_of(*TASKS)),
    ('task.num_digits', (lambda x: 2 <= x <= 1023, 'from 2 to 1023')),
    ('task.vocab_size', _at_least(0)),
    ('task.pad', _at_least(0)),
    ('task.stop', _at_least(0)),
    ('task.response_len', _at_least(0)),
    ('reward.timeout', _POSITIVE),
    ('model.num_layers', _at_least(1)),
    ('model.embed_dim', _at_least(1)),
    ('model.num_heads', _at_least(1)),
    ('model.num_kv_heads', _at_least(1)),
    ('model.head_dim', (lambda x: x >= 2 and x % 2 == 0, 'even, at least 2')),
    ('model.mlp_dim', _at_least(1)),
    ('model.rope_theta', _POSITIVE),
    ('model.norm_eps', _POSITIVE),
    ('rollout.num_prompts', _at_least(1)),
    ('rollout.group_size', _at_least(2)),
    ('rollout.temperature', _POSITIVE),
    ('rollout.staleness', _at_least(0)),
    ('rollout.old_logprobs', _one_of('recompute', 'sampler')),
    ('advantage.baseline', _one_of('mean', 'leave_one_out')),
    ('advantage.scale', _one_of('std', 'none')),
    ('advantage.ddof', _one_of(0, 1)),
    ('advantage.eps', _finite_at_least(0)),
    ('loss.name', _one_of(*LOSSES)),
    ('loss.p', (math.isfinite, 'finite')),
    ('loss.clip_eps_low', _OPEN_UNIT),
    ('loss.clip_eps_high', _POSITIVE_OR_INF),
    ('loss.log_ratio_max', _POSITIVE_OR_INF),
    ('loss.kl_estimator', _one_of(*KL_ESTIMATORS)),
    ('loss.kl_weight', _finite_at_least(0)),
    ('train.num_epochs', _at_least(1)),
    ('train.num_minibatches', _at_least(1)),
    ('train.max_grad_norm', _POSITIVE_OR_INF),
    ('train.max_skips', _at_least(1)),
    ('optim.name', _one_of(*OPTIMIZERS)),
    ('optim.learning_rate', _finite_at_least(0)),
    ('optim.adam_learning_rate', _finite_at_least(0)),
    ('optim.weight_decay', _finite_at_least(0)),
    ('optim.momentum', _MOMENTUM),
    ('optim.adam_b1', _MOMENTUM),
    ('optim.adam_b2', _MOMENTUM),
    ('optim.qk_clip', _one_of(*QK_CLIPS)),
    ('optim.tau', _POSITIVE),
    ('warm_start.num_steps', _at_least(0)),
    ('warm_start.batch_size', _at_least(1)),
    ('warm_start.learning_rate', _finite_at_least(0)),
    ('eval.every', _at_least(1)),
    ('eval.num_prompts', _at_least(2)),
    ('checkpoint.every', _at_least(1)),
    ('checkpoint.keep', _at_least(1)),
))

_FILE_KEYS = ('task.prompts', 'task.vocab_size', 'task.response_len')


def _is_file_alone(c):
  given = (c.task.prompts, c.task.vocab_size, c.task.response_len)
  return all(given) if c.task.name == 'file' else not any(given)


def _are_specials_apart(c):
  pad, stop = c.task.pad, c.task.stop
  return c.task.name != 'file' or pad != stop and max(pad,
                                                      stop) < c.task.vocab_size


def _are_minibatches_even(c):
  size = c.rollout.num_prompts * c.rollout.group_size
  return size % c.train.num_minibatches == 0


# Keys, what must hold of them, and that in words.
JOINT_RULES = (
    (('task.name', *_FILE_KEYS), _is_file_alone,
     'the last three must be given with the task file, and unset with others'),
    (('task.pad', 'task.stop', 'task.vocab_size'), _are_specials_apart,
     'padding and stop token must differ and be below the vocabulary'),
    (('model.num_kv_heads', 'model.num_heads'),
     lambda c: c.model.num_heads % c.model.num_kv_heads == 0,
     'the first must divide the second'),
    (('train.num_minibatches', 'rollout.num_prompts',
      'rollout.group_size'), _are_minibatches_even,
     'the first must divide the product of the others, the sequences'),
    (('loss.kl_weight', 'loss.kl_estimator'),
     lambda c: c.loss.kl_estimator != 'none' or c.loss.kl_weight == 0,
     'the weight must be 0 while there is no estimator'),
    (('optim.qk_clip', 'model.qk_norm'),
     lambda c: c.optim.qk_clip == 'off' or not c.model.qk_norm,
     'the clip must be off with QK-norm, which undoes any rescaling of query '
     'and key weights, so that the clip would shrink them without end'),
)
