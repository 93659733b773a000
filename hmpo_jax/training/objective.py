"""The loss of one minibatch, what it reports, and its gradients."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmpo_jax import base
from hmpo_jax.kernels import agm
from hmpo_jax.kernels import clips
from hmpo_jax.kernels import exponents
from hmpo_jax.kernels import kl
from hmpo_jax.kernels import losses
from hmpo_jax.kernels import ratios
from hmpo_jax.training import policy


class Probes(NamedTuple):
  """Zeros whose gradients tell what the loss makes of each row."""

  logprobs: jax.Array  # [B] added to all log-probabilities of a row
  order: jax.Array  # [B] added to its order


class Forward(NamedTuple):
  """What the loss computed on its way."""

  logprobs: jax.Array  # [B, T]
  max_logits: jax.Array  # [N_l, H]
  metrics: base.Metrics


def differentiate(
  static,
  hparams: base.HParams,
  controls: base.Controls,
  batch: base.Batch,
  params: base.Params,
) -> tuple[tuple[jax.Array, Forward], tuple[base.Params, Probes]]:
  """Loss and forward of a minibatch; gradients of parameters and probes.

  Args:
    static: hashable part of the configuration.
    hparams: traced part of the configuration.
    controls: order and clip range.
    batch: one minibatch.
    params: where the gradients are taken.
  """
  zeros = jnp.zeros(batch.mask.shape[:1])
  loss = functools.partial(_loss, static, hparams, controls, batch)
  return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
    params, Probes(zeros, zeros)
  )


def policy_loss(
  static,
  hparams: base.HParams,
  widths: clips.Widths,
  batch: base.Batch,
  logprobs: jax.Array,
  old_logprobs: jax.Array,
  orders: jax.Array,
) -> tuple[jax.Array, base.Metrics]:
  """The loss of the configuration, without its KL and its entropy.

  Args:
    static: hashable part of the configuration.
    hparams: traced part of the configuration.
    widths: of the clip range.
    batch: one minibatch.
    logprobs: [B, T] under the policy that learns.
    old_logprobs: [B, T] under the policy that sampled.
    orders: [B] from `row_orders`; a loss without an order ignores them.

  Returns:
    The loss [] and its metrics.
  """
  settings = (
    static.loss.to_dict()
    | hparams.loss
    | {
      'p': orders,
      'clip_eps_low': widths.eps_low,
      'clip_eps_high': widths.eps_high,
    }
  )
  if static.loss.clip != 'sequence':
    settings['p_clip'] = None
  taken = losses.options(static.loss.name)
  return losses.LOSSES[static.loss.name](
    logprobs,
    old_logprobs,
    batch.advantages,
    batch.mask,
    **{key: value for key, value in settings.items() if key in taken},
  )


def row_orders(
  static,
  hparams: base.HParams,
  controls: base.Controls,
  batch: base.Batch,
  ratio: ratios.LogRatio,
) -> jax.Array:
  """[B] order of the mean of each row; 0 of a loss that has none.

  Args:
    static: hashable part of the configuration.
    hparams: traced part of the configuration.
    controls: order and clip range.
    batch: one minibatch.
    ratio: its log-ratios; no gradient of them reaches the orders.
  """
  if 'p' not in losses.options(static.loss.name):
    return jnp.zeros(batch.mask.shape[:1])
  clipped = losses.clip_tokens(
    static.loss.clip,
    ratio.x,
    batch.advantages,
    controls.widths.eps_low,
    controls.widths.eps_high,
  )
  return exponents.of_rows(
    hparams.exponent,
    controls.exponent,
    clipped.values,
    batch.mask,
    clipped.stopped,
  )


def _loss(static, hparams, controls, batch, params, probes):
  """Loss [] of one minibatch and what it computed on its way."""
  found = policy.forward_in_microbatches(
    static, params, batch.tokens, batch.valid, batch.mask, hparams.temperature
  )
  logprobs, entropies = found.logprobs, found.entropies
  old_logprobs = jnp.where(
    batch.is_on_policy, jax.lax.stop_gradient(logprobs), batch.old_logprobs
  )
  ratio = ratios.log_ratio(
    logprobs, old_logprobs, batch.mask, hparams.loss['log_ratio_max']
  )
  orders = row_orders(static, hparams, controls, batch, ratio)
  loss, metrics = policy_loss(
    static,
    hparams,
    controls.widths,
    batch,
    logprobs + probes.logprobs[:, None],
    old_logprobs,
    orders + probes.order,
  )
  metrics['ratio/recompute_gap'] = jnp.max(
    jnp.where(
      batch.mask & batch.is_on_policy, jnp.abs(logprobs - batch.old_logprobs), 0
    )
  )
  metrics |= kl.kl_metrics(logprobs, old_logprobs, batch.mask)
  metrics |= agm.iterates(ratio.x, batch.mask, *_clip_range(static, controls))
  if static.loss.kl_estimator != 'none':
    penalty, kl_metrics = kl.kl_penalty(
      logprobs,
      batch.ref_logprobs,
      batch.mask,
      estimator=static.loss.kl_estimator,
      old_logprobs=old_logprobs if static.loss.kl_off_policy else None,
      log_ratio_max=hparams.loss['log_ratio_max'],
    )
    loss += hparams.kl_weight * penalty
    metrics |= kl_metrics | {'kl/reference': penalty}
  entropy = policy.mean_entropy(entropies, batch.mask)
  metrics['policy/entropy'] = entropy
  if static.loss.entropy_bonus:
    loss -= hparams.entropy_weight * entropy
  # These pull even where no row has an advantage.
  pulls = (hparams.kl_weight > 0) | (hparams.entropy_weight != 0)
  metrics['loss/live_frac'] = jnp.where(pulls, 1.0, metrics['loss/live_frac'])
  if found.attention_entropy is not None:
    metrics |= {
      'qk/entropy': jnp.mean(found.attention_entropy),
      'qk/entropy_min': jnp.min(found.attention_entropy),
      'qk/entropy_per_head': found.attention_entropy,
    }
  return loss, Forward(logprobs, found.max_logits, metrics)


def _clip_range(static, controls):
  """Distances of the ratio below and above 1 at which a loss clips."""
  low, high = controls.widths
  if 'clip_eps_high' not in losses.options(static.loss.name):
    return 1.0, jnp.inf  # both sides are open
  if static.loss.clip == 'token_log':
    return -jnp.expm1(-low), jnp.expm1(high)
  return low, high
