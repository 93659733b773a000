"""What every loss returns: its value, and metrics under the same keys.

A fraction of a loss that clips tokens is a mean over rows of token means. No
gradient flows through any of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import agm
from hmpo_jax.kernels import clips
from hmpo_jax.kernels import histograms
from hmpo_jax.kernels import means
from hmpo_jax.kernels import ratios

# What a loss returns: the loss [] and metrics.
Result = tuple[jax.Array, dict[str, jax.Array]]


class Terms(NamedTuple):
  """What a loss makes of each row or of each token."""

  objective: jax.Array  # [B] or [B, T] J
  row_ratio: jax.Array  # [B] what stands for the ratio of a row, not clipped
  # [B, T] not negative; share of each token in the gradient of its row, up to a
  # factor, without a clip of the whole row.
  coefficients: jax.Array
  clipped: clips.Clipped  # low, high and outside [B] or [B, T]
  dual: jax.Array  # bool [B] or [B, T], stopped by the dual clip


def result(
  ratio: ratios.LogRatio,
  advantages: jax.Array,
  terms: Terms,
  aggregation: str,
  length_scale: ratios.Scalar,
) -> Result:
  """The loss -J, and its metrics.

  Args:
    ratio: from `ratios.log_ratio`.
    advantages: [B] or [B, T], 0 for rows without tokens and off the mask.
    terms: of the loss.
    aggregation: see `ratios.aggregate`.
    length_scale: see `ratios.aggregate`.

  Returns:
    The loss [], and by name, scalars and, where it starts with histogram/,
    counts in the bins of `histograms.EDGES`: log_row_ratio of the rows,
    log_token_weight of the tokens, log (n w_t), 0 where all tokens of a row
    weigh the same; tokens without weight, which a clip stopped, are not among
    them. The effective advantage of a row is A_i times its ratio, 0 where it is
    stopped.
  """
  metrics = _of_terms(ratio, advantages, terms)
  token_means = _per_row(terms.objective, ratio.mask)
  return -ratios.aggregate(
    token_means, ratio.mask, aggregation, length_scale
  ), metrics


def of_order(ratio: ratios.LogRatio, p: jax.Array) -> dict[str, jax.Array]:
  """p and d log M_p / dp, means over rows, of a loss that has an order [B]."""
  rows = jnp.any(ratio.mask, axis=1)
  x, p = jax.lax.stop_gradient((ratio.x, p))
  slope = jax.jvp(
    lambda p: means.log_power_mean(x, ratio.mask, p), (p,), (jnp.ones_like(p),)
  )[1]
  return {
    'mean/p': ratios.row_mean(p, rows),
    'mean/dlog_dp': ratios.row_mean(slope, rows),
  }


def _of_terms(ratio, advantages, terms):
  ratio, advantages, row_ratio, coefficients = jax.lax.stop_gradient(
    (ratio, advantages, terms.row_ratio, terms.coefficients)
  )
  mask, clipped, dual = ratio.mask, terms.clipped, terms.dual
  rows = jnp.any(mask, axis=1)
  if dual.ndim < clipped.low.ndim:
    dual = _per_token(dual)
  fraction = lambda stopped: ratios.row_mean(_per_row(stopped, mask), rows)
  stopped = clipped.stopped | dual
  passes = _per_token(~stopped) & _per_token(advantages != 0)
  live = jnp.any(mask & passes, axis=1)
  advantages = _per_row(advantages, mask)
  effective = jnp.where(live, advantages * row_ratio, 0)
  return {
    'clip/low_frac': fraction(clipped.low),
    'clip/high_frac': fraction(clipped.high),
    'clip/dual_frac': fraction(dual),
    'clip/outside_frac': fraction(clipped.outside),
    'loss/live_frac': ratios.row_mean(live, rows),
    'advantage/negative_frac': ratios.row_mean(advantages < 0, rows),
    'advantage/positive_frac': ratios.row_mean(advantages > 0, rows),
    'advantage/effective_mean': ratios.row_mean(effective, live),
    'advantage/effective_variance': _variance(effective, live),
    'nonfinite/advantages': jnp.sum(
      ~jnp.isfinite(advantages), dtype=ratio.x.dtype
    ),
    **_spread('ratio', row_ratio, rows),
    **_spread('ratio/token', jnp.exp(ratio.x), mask),
    'histogram/log_row_ratio': histograms.counts(jnp.log(row_ratio), rows),
    **_weight_metrics(coefficients, mask),
    **_log_ratio_metrics(ratio.x, mask),
    **agm.metrics(ratio.x, mask),
    **ratio.metrics,
  }


def _per_token(values):
  return values[:, None] if values.ndim == 1 else values


def _per_row(values, mask):
  return values if values.ndim == 1 else ratios.token_mean(values, mask)


def _variance(values, where):
  mean = ratios.row_mean(values, where)
  return ratios.row_mean((values - mean) ** 2, where)


def _spread(name, values, where):
  """Mean, standard deviation and range over all entries that count."""
  values, where = values.reshape(-1), where.reshape(-1)
  largest = jnp.max(values, where=where, initial=0)
  return {
    f'{name}/mean': ratios.row_mean(values, where),
    f'{name}/std': jnp.sqrt(_variance(values, where)),
    f'{name}/min': jnp.min(values, where=where, initial=largest),
    f'{name}/max': largest,
  }


def _weight_metrics(coefficients, mask):
  """How evenly the gradient of a row is spread; 1 of n tokens has ESS 1 / n."""
  kept = jnp.where(mask, coefficients, 0)
  # By the largest: tiny coefficients would vanish in the squares.
  peak = jnp.max(kept, axis=1, keepdims=True, initial=0)
  kept /= jnp.where(peak > 0, peak, 1)
  total = jnp.sum(kept, axis=1, keepdims=True)
  rows = total[:, 0] > 0
  weights = kept / jnp.where(total > 0, total, 1)
  share = weights * jnp.sum(mask, axis=1, keepdims=True)
  return {
    'token_weight/ess': ratios.row_mean(
      means.effective_sample_size(weights, mask), rows
    ),
    'token_weight/entropy': ratios.row_mean(
      means.weight_entropy(weights), rows
    ),
    'token_weight/max': jnp.max(weights, initial=0),
    'histogram/log_token_weight': histograms.counts(
      jnp.log(jnp.where(share > 0, share, 1)), share > 0
    ),
  }


def _log_ratio_metrics(x, mask):
  """Cumulants of the tokens' log-ratios within rows, in nats."""
  rows = jnp.any(mask, axis=1)
  deviation = x - ratios.token_mean(x, mask)[:, None]
  variance = ratios.token_mean(deviation**2, mask)
  third = ratios.token_mean(deviation**3, mask)
  spread = variance > jnp.finfo(x.dtype).eps ** 2
  skew = third / jnp.where(spread, variance, 1) ** 1.5
  return {
    'log_ratio/mean': ratios.row_mean(ratios.token_mean(x, mask), rows),
    'log_ratio/row_variance': ratios.row_mean(variance, rows),
    'log_ratio/skew': ratios.row_mean(skew, rows & spread),
    'log_ratio/abs_max': jnp.max(jnp.abs(x), initial=0),
  }
