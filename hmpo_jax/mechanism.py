"""Whether the choice of the mean mattered: gradients of one batch compared."""

import jax
import jax.numpy as jnp
import optax

from hmpo_jax import base
from hmpo_jax import policy
from hmpo_jax.kernels import losses

KEYS = ('mechanism/cosine', 'mechanism/cosine_unclipped',
        'mechanism/norm_ratio', 'mechanism/sigma')

# As wide as a clip range can be: the lower end must stay below 1.
_NO_CLIP = {'clip_eps_low': 1 - 2.**-20, 'clip_eps_high': jnp.inf}


def compare_means(static, params: base.Params, hparams: base.HParams,
                  batch: base.Batch) -> base.Metrics:
  """Compares the gradients of the geometric and the harmonic mean.

  Args:
    static: hashable part of the configuration.
    params: where the gradients are taken.
    hparams: traced part; its clip range is the one of 'cosine'.
    batch: one minibatch.

  Returns:
    cosine: of the two gradients, each with its own clip mask; 0 if one is 0.
    cosine_unclipped: the same without a clip, so of the token weights alone.
    norm_ratio: |g_-1| / |g_0| without a clip.
    sigma: root mean within-row variance of the log-ratios, nats.
  """

  def gradient(p, clip):

    def loss(params):
      logprobs, _, _ = policy.response_logprobs(static, params, batch.tokens,
                                                batch.valid, batch.mask,
                                                hparams.temperature)
      return losses.power_mean_loss(
          logprobs,
          batch.old_logprobs,
          batch.advantages,
          batch.mask,
          p=p,
          log_ratio_max=hparams.log_ratio_max,
          **clip)

    return jax.grad(loss, has_aux=True)(params)

  clip = {
      'clip_eps_low': hparams.clip_eps_low,
      'clip_eps_high': hparams.clip_eps_high
  }
  geometric, metrics = gradient(0, _NO_CLIP)
  harmonic, _ = gradient(-1, _NO_CLIP)
  values = (
      _cosine(gradient(0, clip)[0],
              gradient(-1, clip)[0]),
      _cosine(geometric, harmonic),
      _ratio(optax.tree.norm(harmonic), optax.tree.norm(geometric)),
      jnp.sqrt(metrics['log_ratio/row_variance']),
  )
  return dict(zip(KEYS, values))


def _cosine(first, second):
  return _ratio(
      optax.tree.vdot(first, second),
      optax.tree.norm(first) * optax.tree.norm(second))


def _ratio(value, divisor):
  """value / divisor, 0 where the divisor is 0."""
  return jnp.where(divisor > 0, value / jnp.where(divisor > 0, divisor, 1), 0)
