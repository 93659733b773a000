"""What of a configuration is traced and what decides the compiled program.

The rest, such as the number of steps, is the loop's around it.
"""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.kernels import clips
from hmpo_jax.kernels import exponents
from hmpo_jax.kernels import losses


def hparams(config, replayed: np.ndarray | None = None) -> base.HParams:
  """Returns the traced part of a configuration as arrays.

  Args:
    config: validated.
    replayed: [S] orders of exponent kind 'replayed', see trajectory.load; cut,
      or continued by the last one, to one for each step. Other kinds ignore it.

  Raises:
    ValueError: the kind is 'replayed' and there is no order.
  """
  loss, exponent = config.loss, config.exponent
  values = base.HParams(
    loss={key: loss[key] for key in _TRACED_LOSS_KEYS},
    exponent=exponents.Settings(
      **{
        key: value
        for key, value in exponent.items()
        if key in exponents.Settings._fields
      }
      | {
        'kind': jnp.int32(exponents.index_of(exponent.kind)),
        'start': loss.p,
        'sign': -1.0 if exponent.placebo else 1.0,
        'path': _path(config, replayed),
      }
    ),
    tracking=clips.Tracking(**config.tracking),
    kl_weight=loss.kl_weight,
    reward_kl_weight=config.reward.kl_weight,
    pays_exact=config.reward.kind == 'exact',
    exclude_nonfinite=config.reward.exclude_nonfinite,
    entropy_weight=loss.entropy_weight,
    temperature=config.rollout.temperature,
    mismatch_frac=config.rollout.mismatch_frac,
    mismatch_size=config.rollout.mismatch_size,
    learning_rate=config.optim.learning_rate,
    adam_learning_rate=config.optim.adam_learning_rate,
    adam_weight_decay=config.optim.adam_weight_decay,
    decay=config.optim.decay,
    decay_steps=config.optim.decay_steps,
    weight_decay=config.optim.weight_decay,
    momentum=config.optim.momentum,
    qk_learning_rate_scale=config.optim.qk_learning_rate_scale,
    max_grad_norm=config.train.max_grad_norm,
    tau=config.optim.tau,
    qk_alpha=config.optim.qk_alpha,
    monitor_tau=config.optim.monitor_tau,
    mask_truncated=config.rollout.mask_truncated,
    permute_advantages=config.advantage.permute,
  )
  return jax.tree.map(_traced, values)


def _path(config, replayed):
  """[num_steps] orders of a replay; [1] without one: no shape depends on it."""
  if config.exponent.kind != 'replayed':
    return jnp.array([config.loss.p], jnp.float32)
  if replayed is None or len(replayed) == 0:
    raise ValueError("exponent.kind='replayed' needs the orders to replay")
  steps = np.minimum(np.arange(config.num_steps), len(replayed) - 1)
  return jnp.asarray(replayed[steps], jnp.float32)


def _traced(value):
  """A number as a float32 array; what is bool or an array stays."""
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return jnp.asarray(value, jnp.float32 if is_number else None)


_LOSS = config_lib.default_config().loss
# Losses take numbers as arrays, and what they branch on as it is. p evolves: it
# starts an exponent.
_TRACED_LOSS_KEYS = tuple(
  key for key in losses.OPTIONS if isinstance(_LOSS[key], float) and key != 'p'
)
_STATIC_LOSS_KEYS = tuple(
  key for key in losses.OPTIONS if not isinstance(_LOSS[key], float)
)

# Sections and keys that shape the program; all else is traced or the loop's.
_STATIC = {
  'task': None,
  'model': None,
  'rollout': (
    'num_prompts',
    'group_size',
    'top_k',
    'top_p',
    'bucket',
    'staleness',
    'old_logprobs',
  ),
  'advantage': ('baseline', 'scale', 'ddof', 'eps'),
  'reward': ('kl_estimator',),
  'loss': (
    'name',
    *_STATIC_LOSS_KEYS,
    'kl_estimator',
    'kl_off_policy',
    'entropy_bonus',
  ),
  'train': ('num_epochs', 'num_minibatches', 'num_microbatches'),
  'optim': (
    'name',
    'nesterov',
    'muon_heads',
    'coefficients',
    'products',
    'adam_b1',
    'adam_b2',
    'qk_clip',
  ),
  'warm_start': ('batch_size', 'optimizer'),
}


def static(config) -> ml_collections.FrozenConfigDict:
  """Returns the hashable part that decides which program is compiled.

  Two configurations with equal static parts share every compiled program.
  """
  parts = {
    section: {key: config[section][key] for key in keys or config[section]}
    for section, keys in _STATIC.items()
  }
  parts['warm_start']['can_stop'] = config.warm_start.stop_reward > 0
  parts['mechanism'] = {'is_on': config.mechanism.every > 0}
  return ml_collections.FrozenConfigDict(parts)


# Keys of `model` that a warm start has no use for.
DOSES = ('logits_dtype', 'attention_entropy')


def of_warm_start(
  whole: ml_collections.FrozenConfigDict,
) -> ml_collections.FrozenConfigDict:
  """Returns what of a static part decides a warm start, which all doses share.

  It has attention logits of float32, whatever those of the run are.

  Args:
    whole: from `static`.
  """
  parts = whole.to_dict()
  for key in DOSES:
    del parts['model'][key]
  return ml_collections.FrozenConfigDict(parts)
