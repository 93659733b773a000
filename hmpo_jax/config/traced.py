"""What of a configuration is traced and what decides the compiled program.

The rest, such as the number of steps, is the loop's around it.
"""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from hmpo_jax import base
from hmpo_jax.config import keys
from hmpo_jax.kernels import clips
from hmpo_jax.kernels import exponents
from hmpo_jax.kernels import losses


def hparams(config, replayed: np.ndarray | None = None) -> base.HParams:
  """Returns the traced part of a configuration as arrays.

  Args:
    config: validated.
    replayed: [S] orders of exponent kind 'replayed', see `replayed.load`; cut,
      or continued by the last one, to one for each step. Other kinds ignore it.

  Raises:
    ValueError: the kind is 'replayed' and there is no order.
  """
  found = keys.values(config, 'traced')
  loss, exponent = found['loss'], found['exponent']
  values = base.HParams(
    # p evolves: it starts an exponent.
    loss={
      key: loss[key] for key in loss if key in losses.OPTIONS and key != 'p'
    },
    exponent=exponents.Settings(
      **{key: exponent[key] for key in exponent if key != 'placebo'}
      | {
        'kind': jnp.int32(exponents.index_of(config.exponent.kind)),
        'start': config.loss.p,
        'sign': -1.0 if config.exponent.placebo else 1.0,
        'path': _path(config, replayed),
      }
    ),
    tracking=clips.Tracking(**found['tracking']),
    kl_weight=config.loss.kl_weight,
    reward_kl_weight=config.reward.kl_weight,
    pays_exact=config.reward.kind == 'exact',
    exclude_nonfinite=config.reward.exclude_nonfinite,
    entropy_weight=config.loss.entropy_weight,
    permute_advantages=config.advantage.permute,
    # The fields of these sections are called like their keys.
    **found['rollout'],
    **found['train'],
    **found['optim'],
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


def static(config) -> ml_collections.FrozenConfigDict:
  """Returns the hashable part that decides which program is compiled.

  Two configurations with equal static parts share every compiled program.
  """
  parts = keys.values(config, 'static')
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
