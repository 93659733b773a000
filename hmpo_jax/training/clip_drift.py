"""How far the QK-clip of one update moves the policy."""

import jax
import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax.kernels import kl
from hmpo_jax.kernels import ratios
from hmpo_jax.model import transformer
from hmpo_jax.optim import factory
from hmpo_jax.optim import muon_clip
from hmpo_jax.training import policy
from hmpo_jax.training import update


def keys(static) -> tuple[str, ...]:
  """Names of the metrics, none where nothing is clipped."""
  if static.optim.qk_clip == 'off':
    return ()
  return 'qk/clip_drift_k3', 'qk/clip_drift_abs_max'


def measure(
  static,
  learned: update.Learned,
  hparams: base.HParams,
  batch: base.Batch,
  cause: jax.Array,
) -> base.Metrics:
  """Compares the policy before and after the clip of the last update.

  The one before is what the same update makes without the clip, but for the
  rounding of a division by the clip's factors.

  Args:
    static: hashable part of the configuration.
    learned: after the update.
    hparams: traced part of the configuration.
    batch: of the update; its trained tokens are compared.
    cause: [] of the update's report; one that was skipped clipped nothing.

  Returns:
    By the names `keys`, 0 where no head was clipped:
    k3: estimate of KL(before || after), mean over rows of the mean over tokens,
      nats; the tokens are those of the policy that sampled the rollout.
    abs_max: largest change of a token's log-probability, nats.
  """
  if not keys(static):
    return {}
  gamma = factory.clip_state(learned.opt_state).last_factor

  def logprobs(is_undone):
    params = muon_clip.undone(
      learned.params,
      jnp.where(is_undone & ~update.is_skipped(cause), gamma, 1),
      attention=transformer.attention_weights,
      mode=static.optim.qk_clip,
      alpha=hparams.qk_alpha,
    )
    return policy.logprobs_beside_an_update(
      static, params, batch, hparams.temperature
    )

  # One program for both: where nothing was clipped they have the same bits.
  before, after = jax.lax.map(logprobs, jnp.array([True, False]))
  change = ratios.log_ratio(after, before, batch.mask, jnp.inf).x
  divergence = kl.kl_metrics(after, before, batch.mask)['kl_old/k3']
  return dict(zip(keys(static), (divergence, jnp.max(jnp.abs(change)))))
