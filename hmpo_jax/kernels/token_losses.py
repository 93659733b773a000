"""Losses that are sums over tokens, each with a term of its own.

Formulas, gradients and the arguments that all losses share stand in losses.py.
"""

import math

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import checks
from hmpo_jax.kernels import clips
from hmpo_jax.kernels import loss_metrics
from hmpo_jax.kernels import means
from hmpo_jax.kernels import ratios


def gspo_token_loss(
  logprobs: jax.Array,
  old_logprobs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  clip_eps_low: ratios.Scalar,
  clip_eps_high: ratios.Scalar,
  dual_clip: ratios.Scalar = math.inf,
  aggregation: str = 'sequence-mean-token-mean',
  length_scale: ratios.Scalar = 1.0,
  log_ratio_max: ratios.Scalar = 20.0,
) -> loss_metrics.Result:
  """GSPO with an advantage for each token, [B, T] or [B].

    J_it = min(s_it A_it, clip(s_it, 1 - eps_low, 1 + eps_high) A_it),
    s_it = sg(M_0,i) r_it / sg(r_it)

  with sg the stop-gradient: eq. 13 and 14 of https://arxiv.org/abs/2507.18071.
  Equal to GSPO where the advantage is the same for all tokens of a row.
  """
  ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
  if advantages.ndim == 1:
    checks.shapes(mask.shape[:1], advantages=advantages)
    advantages = jnp.broadcast_to(advantages[:, None], mask.shape)
  checks.shapes(mask.shape, advantages=advantages)
  checks.dtypes(float, advantages=advantages)
  advantages = jax.lax.stop_gradient(jnp.where(mask, advantages, 0))
  advantages = advantages.astype(ratio.x.dtype)
  constant = jax.lax.stop_gradient(ratio.x)
  log_mean = means.log_power_mean(constant, mask, 0.0)
  terms = _clipped(
    log_mean[:, None] + (ratio.x - constant),
    advantages,
    jnp.abs(advantages),
    (clip_eps_low, clip_eps_high, dual_clip),
    jnp.exp(log_mean),
  )
  return loss_metrics.result(
    ratio, advantages, terms, aggregation, length_scale
  )


def grpo_loss(
  logprobs: jax.Array,
  old_logprobs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  clip_eps_low: ratios.Scalar,
  clip_eps_high: ratios.Scalar,
  dual_clip: ratios.Scalar = math.inf,
  aggregation: str = 'sequence-mean-token-mean',
  length_scale: ratios.Scalar = 1.0,
  log_ratio_max: ratios.Scalar = 20.0,
) -> loss_metrics.Result:
  """Every token's ratio clipped by itself.

    J_it = min(r_it A_i, clip(r_it, 1 - eps_low, 1 + eps_high) A_i)

  "DeepSeekMath" by Shao et al. (https://arxiv.org/abs/2402.03300), eq. 3; its
  KL term is kl.kl_penalty. DAPO (https://arxiv.org/abs/2503.14476), BNPO and Dr.
  GRPO (https://arxiv.org/abs/2503.20783) differ in the aggregation, see
  losses.py, which has the arguments too.
  """
  ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
  _, advantages = ratios.of_rows(advantages, mask)
  terms = _clipped(
    ratio.x,
    advantages[:, None],
    jnp.exp(ratio.x),
    (clip_eps_low, clip_eps_high, dual_clip),
    ratios.token_mean(jnp.exp(ratio.x), mask),
  )
  return loss_metrics.result(
    ratio, advantages, terms, aggregation, length_scale
  )


def cispo_loss(
  logprobs: jax.Array,
  old_logprobs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  clip_eps_low: ratios.Scalar,
  clip_eps_high: ratios.Scalar,
  aggregation: str = 'token-mean',
  length_scale: ratios.Scalar = 1.0,
  log_ratio_max: ratios.Scalar = 20.0,
) -> loss_metrics.Result:
  """The clipped ratio as a weight: no token loses its gradient.

    J_it = sg(clip(r_it, 1 - eps_low, 1 + eps_high)) A_i log pi_it

  "MiniMax-M1" (https://arxiv.org/abs/2506.13585), which sets no lower bound:
  clip_eps_low = 1. TRL's cap min(r, c) is that with clip_eps_high = c - 1. Both
  sides bind for either sign of A. The arguments are those of losses.py.
  """
  ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
  _, advantages = ratios.of_rows(advantages, mask)
  low_edge, high_edge = clips.edges(clip_eps_low, clip_eps_high, ratio.x.dtype)
  x = jax.lax.stop_gradient(ratio.x)
  # Finite: infinity would be NaN times an advantage of 0.
  top = jnp.minimum(high_edge, math.log(jnp.finfo(x.dtype).max) - 1)
  weight = jnp.exp(jnp.clip(x, low_edge, top))
  below, above = x < low_edge, x > high_edge
  bound = clips.Clipped(x, below, above, below | above)
  return _weighted(ratio, advantages, weight, bound, aggregation, length_scale)


def reinforce_loss(
  logprobs: jax.Array,
  old_logprobs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  aggregation: str = 'sequence-mean-token-mean',
  length_scale: ratios.Scalar = 1.0,
  log_ratio_max: ratios.Scalar = 20.0,
) -> loss_metrics.Result:
  """J_it = A_i log pi_it: no ratio, the control of all the others.

  Williams, "Simple statistical gradient-following algorithms" (1992). The old
  log-probabilities are used for metrics, and for tokens that are clamped.
  """
  ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
  _, advantages = ratios.of_rows(advantages, mask)
  weight, bound = jnp.ones_like(ratio.x), _not_clipped(ratio.x)
  return _weighted(ratio, advantages, weight, bound, aggregation, length_scale)


def sapo_loss(
  logprobs: jax.Array,
  old_logprobs: jax.Array,
  advantages: jax.Array,
  mask: jax.Array,
  *,
  tau_positive: ratios.Scalar = 1.0,
  tau_negative: ratios.Scalar = 1.05,
  aggregation: str = 'sequence-mean-token-mean',
  length_scale: ratios.Scalar = 1.0,
  log_ratio_max: ratios.Scalar = 20.0,
) -> loss_metrics.Result:
  """A soft gate for a clip.

    J_it = 4 / tau sigmoid(tau (r_it - 1)) A_i

  with tau_positive where A > 0, else tau_negative: "Soft Adaptive Policy
  Optimization" (https://arxiv.org/abs/2511.20347). Where r = 1 its slope is 1.
  The other arguments are those of losses.py.
  """
  ratio = ratios.log_ratio(logprobs, old_logprobs, mask, log_ratio_max)
  _, advantages = ratios.of_rows(advantages, mask)
  tau = jnp.where(advantages > 0, tau_positive, tau_negative)[:, None]
  tau = jax.lax.stop_gradient(tau.astype(ratio.x.dtype))
  # Where r is large the gate is open and flat, also where r overflows.
  largest = math.log(jnp.finfo(ratio.x.dtype).max) / 2
  r = jnp.exp(jnp.minimum(ratio.x, largest))
  gate = jax.nn.sigmoid(tau * (r - 1))
  objective = 4 / tau * gate * advantages[:, None]
  # sech^2(z / 2) = 4 sigmoid(z) (1 - sigmoid(z)).
  slope = r * 4 * gate * jax.nn.sigmoid(-tau * (r - 1))
  terms = _not_stopped(ratio, objective, slope)
  return loss_metrics.result(
    ratio, advantages, terms, aggregation, length_scale
  )


def _clipped(log_value, advantages, coefficients, clip, row_ratio):
  """Terms of tokens that are clipped one by one; arrays [B, T] or [B, 1]."""
  eps_low, eps_high, dual_clip = clip
  low_edge, high_edge = clips.edges(eps_low, eps_high, log_value.dtype)
  clipped = clips.one_sided(log_value, advantages, low_edge, high_edge)
  objective, dual = clips.objective(clipped.values, advantages, dual_clip)
  coefficients = jnp.where(clipped.stopped | dual, 0, coefficients)
  return loss_metrics.Terms(objective, row_ratio, coefficients, clipped, dual)


def _weighted(ratio, advantages, weight, bound, aggregation, length_scale):
  """Loss of log-probabilities with constant weights; `bound` stops none."""
  objective = weight * advantages[:, None] * ratio.logprobs
  terms = _not_stopped(ratio, objective, weight)
  loss, metrics = loss_metrics.result(
    ratio, advantages, terms, aggregation, length_scale
  )
  rows = jnp.any(ratio.mask, axis=1)
  for side in ('low', 'high', 'outside'):
    metrics[f'clip/{side}_frac'] = ratios.row_mean(
      ratios.token_mean(getattr(bound, side), ratio.mask), rows
    )
  return loss, metrics


def _not_stopped(ratio, objective, coefficients):
  """Terms of tokens of which none is clipped."""
  clipped = _not_clipped(ratio.x)
  row_ratio = ratios.token_mean(jnp.exp(ratio.x), ratio.mask)
  return loss_metrics.Terms(
    objective, row_ratio, coefficients, clipped, clipped.low
  )


def _not_clipped(x):
  nothing = jnp.zeros(x.shape, bool)
  return clips.Clipped(x, nothing, nothing, nothing)
