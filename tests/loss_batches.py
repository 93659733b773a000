"""Batches, settings and one compiled way to run a loss, for its tests."""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import losses

ORDERS = (-50.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 50.0)
CLIP = {'clip_eps_low': 0.2, 'clip_eps_high': 0.3}
NO_CLIP = {'clip_eps_low': 1 - 2.0**-20, 'clip_eps_high': np.inf}
GARBAGE = (np.nan, np.inf, -np.inf, 1e30)
LENGTHS = np.array([6, 4, 1, 3, 0])  # of the rows of `scattered`


class Batch(NamedTuple):
  """What every loss takes."""

  logprobs: jax.Array  # [5, 6]
  old_logprobs: jax.Array  # [5, 6]
  advantages: jax.Array  # [5]
  mask: jax.Array  # [5, 6]

  @property
  def log_ratios(self) -> jax.Array:
    """[5, 6] nats, of whatever lies off the mask too."""
    return self.logprobs - self.old_logprobs


class Result(NamedTuple):
  """What a loss returns, and its gradient in each of its arguments."""

  loss: jax.Array
  metrics: dict[str, jax.Array]
  by_logprobs: jax.Array
  by_old_logprobs: jax.Array
  by_advantages: jax.Array
  by_settings: dict[str, jax.Array]


def scattered(sigma=0.3, dtype=np.float32) -> Batch:
  """Rows of 6, 4, 1, 3 and 0 tokens whose log-ratios scatter by sigma."""
  rng = np.random.default_rng(1)
  old_logprobs = rng.uniform(-3, -1, size=(5, 6))
  logprobs = old_logprobs + sigma * rng.normal(size=(5, 6))
  mask = np.array(
    [
      [1, 1, 1, 1, 1, 1],
      [0, 1, 1, 1, 1, 0],
      [0, 0, 0, 1, 0, 0],
      [1, 0, 1, 0, 1, 0],
      [0, 0, 0, 0, 0, 0],
    ],
    bool,
  )
  advantages = np.array([1.5, -0.7, 0.4, -1.2, 0.9])
  return Batch(
    jnp.asarray(logprobs, dtype),
    jnp.asarray(old_logprobs, dtype),
    jnp.asarray(advantages, dtype),
    jnp.asarray(mask),
  )


def of_log_ratios(rows, advantages) -> Batch:
  """Rows whose log-ratios are given to the last bit, in a batch of one shape.

  What is padded is masked; one shape for all tests spares compilations.
  """
  num_rows, length = np.shape(rows)
  log_ratios, mask = np.zeros((5, 6), np.float32), np.zeros((5, 6), bool)
  log_ratios[:num_rows, :length] = rows
  mask[:num_rows, :length] = True
  return Batch(
    jnp.asarray(log_ratios),
    jnp.zeros((5, 6)),
    jnp.zeros(5).at[:num_rows].set(jnp.asarray(advantages)),
    jnp.asarray(mask),
  )


def filled(batch, logprobs, old_logprobs, advantages) -> Batch:
  """The batch with one value off the mask, and one in rows without tokens."""
  return batch._replace(
    logprobs=jnp.where(batch.mask, batch.logprobs, logprobs),
    old_logprobs=jnp.where(batch.mask, batch.old_logprobs, old_logprobs),
    advantages=jnp.where(
      jnp.any(batch.mask, axis=1), batch.advantages, advantages
    ),
  )


class Case(NamedTuple):
  """A loss with its options, and the settings that a program takes as data."""

  loss: Callable[..., Any]
  settings: dict[str, float]

  def run(self, batch: Batch, **changes) -> Result:
    """Loss and gradients, with some settings changed."""
    assert set(changes) <= set(self.settings), changes
    return _run(self.loss, batch, self.settings | changes)


# Of a loss and arrays. Programs as small as these take longer to compile than
# to run, so that LLVM need not make them fast.
jit_loss = functools.partial(
  jax.jit,
  static_argnums=0,
  compiler_options={'xla_backend_optimization_level': 0},
)
# One entry for each program of `Case.run`.
traces: list[Callable[..., Any]] = []


@jit_loss
def _run(loss, batch, settings):
  traces.append(loss)
  *arrays, mask = batch
  of = lambda new, old, advantages, settings: loss(
    new, old, advantages, mask, **settings
  )
  value, gradients = jax.value_and_grad(of, (0, 1, 2, 3), has_aux=True)(
    *arrays, settings
  )
  return Result(*value, *gradients)


_ALL = {'length_scale': 4.0, 'log_ratio_max': 20.0}
_CLIPPED = _ALL | CLIP | {'dual_clip': np.inf}
_MEAN = _CLIPPED | {'p': -1.0}


def _case(loss, settings, **options):
  return Case(functools.partial(loss, **options), settings)


SEQUENCE = _case(losses.power_mean_loss, _MEAN)
GEOMETRIC = _case(losses.power_mean_loss, _MEAN, clip_center='geometric')
UNBIASED = _case(losses.power_mean_loss, _MEAN, clip_center='unbiased')
# Orders of clip and gradient of their own; infinity is p.
SPLIT = _case(
  losses.power_mean_loss, _MEAN | {'p_clip': np.inf, 'p_grad': np.inf}
)
TOKEN = _case(losses.power_mean_loss, _MEAN, clip='token')
TOKEN_LOG = _case(losses.power_mean_loss, _MEAN, clip='token_log')
AHM = _case(losses.arithmetic_harmonic_loss, _CLIPPED)
GSPO_TOKEN = _case(losses.gspo_token_loss, _CLIPPED)
GRPO = _case(losses.grpo_loss, _CLIPPED)
DAPO = _case(losses.grpo_loss, _CLIPPED, aggregation='token-mean')
DR_GRPO = _case(
  losses.grpo_loss, _CLIPPED, aggregation='sequence-mean-token-sum'
)
CISPO = _case(losses.cispo_loss, _ALL | CLIP)
SAPO = _case(
  losses.sapo_loss, _ALL | {'tau_positive': 1.0, 'tau_negative': 1.1}
)
REINFORCE = _case(losses.reinforce_loss, _ALL)

# All of them by name: who adds a loss adds it here.
CASES = (
    ('sequence', SEQUENCE),
    ('geometric', GEOMETRIC),
    ('unbiased', UNBIASED),
    ('split', SPLIT),
    ('token', TOKEN),
    ('token_log', TOKEN_LOG),
    ('arithmetic_harmonic', AHM),
    ('gspo_token', GSPO_TOKEN),
    ('grpo', GRPO),
    ('dapo', DAPO),
    ('dr_grpo', DR_GRPO),
    ('cispo', CISPO),
    ('sapo', SAPO),
    ('reinforce', REINFORCE),
)  # fmt: skip
