"""Losses of clipped importance ratios; each returns (loss, metrics).

Shapes are those of base.py. All start from x_t = logprobs - old_logprobs on
the tokens of the mask, in float32 or better, and maximise an objective J; the
loss is -J. The gradient flows through `logprobs` (and p) only.
"""

import chex
import jax
import jax.numpy as jnp

from hmpo_jax.kernels import means
from hmpo_jax.kernels import ratios


def power_mean_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    p: jax.Array | float,
    clip_eps_low: jax.Array | float,
    clip_eps_high: jax.Array | float,
    log_ratio_max: jax.Array | float = 20.
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """One power mean of the ratios for each sequence, clipped as a whole.

    J = mean_i min(M_p,i A_i, clip(M_p,i, 1 - eps_low, 1 + eps_high) A_i)

  with M_p,i the power mean of r_t = exp(x_t) over the tokens of sequence i.
  p = 0 is GSPO: "Group Sequence Policy Optimization" by Zheng et al.
  (https://arxiv.org/abs/2507.18071), eq. 5 and 7; p = -1 is HMPO; any p is the
  sequence-clipped form of HoelderPO (https://arxiv.org/abs/2605.12058). p = 1
  is not GRPO, which clips every token before the mean. The gradient is

    dJ / dx_it = A_i M_p,i softmax(p x_i)_t / B where not clipped, else 0.

  Args:
    logprobs: [B, T] under the policy that learns, in nats.
    old_logprobs: [B, T] under the policy that sampled.
    advantages: [B].
    mask: [B, T] bool, true on the trained tokens.
    p: [] or [B] order of the mean.
    clip_eps_low: [] how far below 1 the mean may fall before it is clipped.
    clip_eps_high: [] how far above 1 it may rise.
    log_ratio_max: [] bound on |x_t|, in nats; no gradient beyond it.

  Returns:
    loss [], 0 if no row has a token, and metrics; rows without tokens count
    nowhere.
  """
  log_ratio, clamp_metrics = ratios.log_ratio(logprobs, old_logprobs, mask,
                                              log_ratio_max)
  rows, advantages = ratios.of_rows(advantages, mask)
  log_mean = means.log_power_mean(log_ratio, mask, p)
  objective, low, high = _clipped(log_mean, advantages, clip_eps_low,
                                  clip_eps_high)
  weight = jnp.exp(log_mean) * advantages
  metrics = {
      'clip/low_frac': ratios.row_mean(low, rows),
      'clip/high_frac': ratios.row_mean(high, rows),
      'loss/live_frac': ratios.row_mean(~low & ~high & (advantages != 0), rows),
      **_ratio_metrics(jnp.exp(log_mean), rows),
      **_effective_variance(weight, rows),
      **_log_ratio_metrics(log_ratio, mask),
      **clamp_metrics,
  }
  return -ratios.row_mean(objective, rows), metrics


def grpo_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_eps_low: jax.Array | float,
    clip_eps_high: jax.Array | float,
    log_ratio_max: jax.Array | float = 20.
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Every token's ratio clipped by itself, then the mean over the sequence.

    J = mean_i mean_t min(r_t A_i, clip(r_t, 1 - eps_low, 1 + eps_high) A_i)

  See "DeepSeekMath" by Shao et al. (https://arxiv.org/abs/2402.03300), eq. 3;
  its KL term is kl_penalty.

  Args:
    logprobs: [B, T] under the policy that learns, in nats.
    old_logprobs: [B, T] under the policy that sampled.
    advantages: [B].
    mask: [B, T] bool, true on the trained tokens.
    clip_eps_low: [] how far below 1 a ratio may fall before it is clipped.
    clip_eps_high: [] how far above 1 it may rise.
    log_ratio_max: [] bound on |x_t|, in nats; no gradient beyond it.

  Returns:
    loss [], 0 if no row has a token, and metrics; rows without tokens count
    nowhere. Ratios and clipped fractions are means over rows of token means.
  """
  log_ratio, clamp_metrics = ratios.log_ratio(logprobs, old_logprobs, mask,
                                              log_ratio_max)
  rows, advantages = ratios.of_rows(advantages, mask)
  objective, low, high = _clipped(log_ratio, advantages[:, None], clip_eps_low,
                                  clip_eps_high)
  live = jnp.any(mask & ~low & ~high, axis=1) & (advantages != 0)
  mean_ratio = ratios.token_mean(jnp.exp(log_ratio), mask)
  metrics = {
      'clip/low_frac': ratios.row_mean(ratios.token_mean(low, mask), rows),
      'clip/high_frac': ratios.row_mean(ratios.token_mean(high, mask), rows),
      'loss/live_frac': ratios.row_mean(live, rows),
      **_ratio_metrics(mean_ratio, rows),
      **_effective_variance(mean_ratio * advantages, rows),
      **_log_ratio_metrics(log_ratio, mask),
      **clamp_metrics,
  }
  return -ratios.row_mean(ratios.token_mean(objective, mask), rows), metrics


def kl_penalty(logprobs: jax.Array, ref_logprobs: jax.Array, mask: jax.Array, *,
               estimator: str) -> jax.Array:
  """Estimate of KL(pi || pi_ref) from the sampled tokens, mean over rows.

  With d = ref_logprobs - logprobs: k1 = -d, k2 = d^2 / 2, k3 = e^d - 1 - d. As
  a loss k1 has no expected gradient on-policy, k2 gives the gradient of
  KL(pi || pi_ref) and k3 that of KL(pi_ref || pi). See "Approximating KL
  Divergence" by Schulman (http://joschu.net/blog/kl-approx.html).

  Args:
    logprobs: [B, T] under the policy that learns, in nats.
    ref_logprobs: [B, T] under the anchor.
    mask: [B, T] bool, true on the tokens that count.
    estimator: 'k1', 'k2' or 'k3'.

  Returns:
    [] mean over rows with tokens of the mean over their tokens, in nats; d is
    clamped to +-20, without gradient beyond, so that k3 stays finite.

  Raises:
    ValueError: unknown estimator.
  """
  difference, _ = ratios.log_ratio(
      ref_logprobs, logprobs, mask, 20., flow_to_old=True)
  if estimator == 'k1':
    penalty = -difference
  elif estimator == 'k2':
    penalty = difference**2 / 2
  elif estimator == 'k3':
    penalty = jnp.expm1(difference) - difference
  else:
    raise ValueError(f'{estimator=}: must be k1, k2 or k3')
  return ratios.row_mean(
      ratios.token_mean(penalty, mask), jnp.any(mask, axis=1))


def _clipped(log_ratio, advantages, clip_eps_low, clip_eps_high):
  """min(r A, clip(r) A), and which entries the low and the high side stop."""
  eps_low, eps_high = (
      jax.lax.stop_gradient(jnp.asarray(eps, log_ratio.dtype))
      for eps in (clip_eps_low, clip_eps_high))
  low_bound, high_bound = jnp.log1p(-eps_low), jnp.log1p(eps_high)
  low = (advantages < 0) & (log_ratio < low_bound)
  high = (advantages > 0) & (log_ratio > high_bound)
  kept = jnp.where(low, low_bound, jnp.where(high, high_bound, log_ratio))
  return jnp.exp(kept) * advantages, low, high


def _ratio_metrics(ratio, rows):
  largest = jnp.max(ratio, where=rows, initial=0)
  return {
      'ratio/mean': ratios.row_mean(ratio, rows),
      'ratio/min': jnp.min(ratio, where=rows, initial=largest),
      'ratio/max': largest,
  }


def _effective_variance(weight, rows):
  """Variance over rows of A_i M_i, what the clip and the mean make of A."""
  mean = ratios.row_mean(weight, rows)
  return {
      'advantage/effective_variance': ratios.row_mean((weight - mean)**2, rows)
  }


def _log_ratio_metrics(log_ratio, mask):
  """How far tokens have left the policy that sampled them, and their means."""
  rows = jnp.any(mask, axis=1)
  log_ratio = jax.lax.stop_gradient(log_ratio)
  variance = ratios.token_mean(
      (log_ratio - ratios.token_mean(log_ratio, mask)[:, None])**2, mask)
  harmonic, geometric, arithmetic = (
      means.log_power_mean(log_ratio, mask, p) for p in (-1, 0, 1))
  log_a, log_h = means.arithmetic_harmonic(arithmetic, harmonic, 5)
  distance = jnp.mean(jnp.tanh((log_a - log_h) / 2), axis=0)
  return {
      'log_ratio/mean':
          ratios.row_mean(ratios.token_mean(log_ratio, mask), rows),
      'log_ratio/abs_max':
          jnp.max(jnp.abs(log_ratio), initial=0),
      'log_ratio/row_variance':
          ratios.row_mean(variance, rows),
      'agm/arithmetic':
          ratios.row_mean(jnp.exp(arithmetic), rows),
      'agm/geometric':
          ratios.row_mean(jnp.exp(geometric), rows),
      'agm/harmonic':
          ratios.row_mean(jnp.exp(harmonic), rows),
      'agm/gap':
          ratios.row_mean(jnp.exp(arithmetic) - jnp.exp(harmonic), rows),
      'agm/convergence_rate':
          1 - ratios.row_mean(distance, rows),
  }
