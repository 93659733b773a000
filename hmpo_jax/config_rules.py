"""Which values a configuration may hold, one key at a time and together."""

import math

TASKS = ('sort', 'addition')
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
    ('eval.num_prompts', _at_least(1)),
    ('checkpoint.every', _at_least(1)),
    ('checkpoint.keep', _at_least(1)),
))

JOINT_RULES = (
    (lambda c: c.model.num_heads % c.model.num_kv_heads == 0, lambda c:
     (f'config.model.num_kv_heads = {c.model.num_kv_heads}: must divide '
      f'config.model.num_heads = {c.model.num_heads}')),
    (lambda c: c.rollout.num_prompts * c.rollout.group_size % c.train.
     num_minibatches == 0, lambda c:
     (f'config.train.num_minibatches = {c.train.num_minibatches}: must '
      'divide the sequences of a rollout, num_prompts * group_size = '
      f'{c.rollout.num_prompts * c.rollout.group_size}')),
    (lambda c: c.loss.kl_estimator != 'none' or c.loss.kl_weight == 0, lambda c:
     (f'config.loss.kl_weight = {c.loss.kl_weight}: must be 0 while '
      'config.loss.kl_estimator is none')),
    (lambda c: c.optim.qk_clip == 'off' or not c.model.qk_norm, lambda c:
     ('config.optim.qk_clip = weights: must be off while config.model.qk_norm '
      'is true; the norm undoes any rescaling of the query and key weights, '
      'so the clip would shrink them without end')),
)
