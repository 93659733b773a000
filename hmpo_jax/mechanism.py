"""Whether the choice of the mean mattered: gradients of one batch compared."""

import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax import policy
from hmpo_jax.kernels import clips
from hmpo_jax.kernels import losses

KEYS = ('mechanism/cosine', 'mechanism/cosine_unclipped',
        'mechanism/norm_ratio', 'mechanism/sigma')

# It stands beside an update in one program, whose memory it shall not double.
_MIN_PARTS = 8
# As low as the lower end of a clip range can be: it must stay below 1.
_NO_CLIP_LOW = 1 - 2.**-20


def compare_means(static, params: base.Params, hparams: base.HParams,
                  widths: clips.Widths, batch: base.Batch) -> base.Metrics:
  """Compares the gradients of the geometric and the harmonic mean.

  Args:
    static: hashable part of the configuration.
    params: where the gradients are taken.
    hparams: traced part of the configuration.
    widths: of the clip range of 'cosine'.
    batch: one minibatch.

  Returns:
    cosine: of the two gradients, each with its own clip mask; 0 if one is 0.
    cosine_unclipped: the same without a clip, so of the token weights alone.
    norm_ratio: |g_-1| / |g_0| without a clip.
    sigma: root mean within-row variance of the log-ratios, nats.
  """

  def forward(params):
    return policy.forward_in_microbatches(
        static,
        params,
        batch.tokens,
        batch.valid,
        batch.mask,
        hparams.temperature,
        min_parts=_MIN_PARTS).logprobs

  logprobs, pull_back = jax.vjp(forward, params)
  loss = lambda logprobs, p, low, high: losses.power_mean_loss(
      logprobs,
      batch.old_logprobs,
      batch.advantages,
      batch.mask,
      p=p,
      clip_eps_low=low,
      clip_eps_high=high,
      log_ratio_max=hparams.loss['log_ratio_max'])

  def gradient(setting):
    slope, metrics = jax.grad(loss, has_aux=True)(logprobs, *setting)
    return pull_back(slope)[0], metrics['log_ratio/row_variance']

  low, high = widths
  settings = jnp.array([
      (0, low, high),
      (-1, low, high),
      (0, _NO_CLIP_LOW, jnp.inf),
      (-1, _NO_CLIP_LOW, jnp.inf),
  ])
  # One program for the four backward passes, which share a forward pass.
  grads, variances = jax.lax.map(gradient, settings)
  geometric_clipped, harmonic_clipped, geometric, harmonic = (
      jax.tree.map(lambda x, i=i: x[i], grads) for i in range(4))
  values = (
      _cosine(geometric_clipped, harmonic_clipped),
      _cosine(geometric, harmonic),
      _ratio(optax.tree.norm(harmonic), optax.tree.norm(geometric)),
      jnp.sqrt(variances[0]),
  )
  return dict(zip(KEYS, values))


def _cosine(first, second):
  return _ratio(
      optax.tree.vdot(first, second),
      optax.tree.norm(first) * optax.tree.norm(second))


def _ratio(value, divisor):
  """value / divisor, 0 where the divisor is 0."""
  return jnp.where(divisor > 0, value / jnp.where(divisor > 0, divisor, 1), 0)
