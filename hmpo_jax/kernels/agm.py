"""Arithmetic and harmonic mean of the ratios, and how fast they meet.

What external controllers read under the name of AGM is the arithmetic-harmonic
iteration of `means.arithmetic_harmonic`, which Gauss's is not. All of it is of
the ratios before any clip, row by row, then averaged over the rows that have
tokens. No gradient flows through any of it.
"""

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import means
from hmpo_jax.kernels import ratios

# Iterations that `iterates` makes: after ten, a and h that differ by a factor
# of 1e4 are within 1e-8 of their limit.
MAX_ITERATIONS = 10
_RATE_ITERATIONS = 5  # of agm/convergence_rate
# Half-widths of the clip range beyond which a normalised mean is not told
# apart: e^8 is 3000, so that one row can't hide all others.
_MAX_WIDTHS = 8.0


def metrics(log_ratio: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
  """The three classical means, the gap of two, and their rate of convergence.

  The rate is 1 - mean_k (a_k - h_k) / (a_k + h_k) over k = 0 to 5: 1 where all
  ratios of a row are equal.

  Args:
    log_ratio: [B, T] nats, 0 off the mask.
    mask: [B, T] bool, true on the trained tokens.

  Returns:
    Scalars by name; 0, and 1 of the rate, where no row has a token.
  """
  rows, arithmetic, harmonic = _ends(log_ratio, mask)
  geometric = means.log_power_mean(log_ratio, mask, 0)
  log_a, log_h = means.arithmetic_harmonic(
    arithmetic, harmonic, _RATE_ITERATIONS
  )
  distance = jnp.mean(jnp.tanh((log_a - log_h) / 2), axis=0)
  return {
    'agm/arithmetic': ratios.row_mean(jnp.exp(arithmetic), rows),
    'agm/geometric': ratios.row_mean(jnp.exp(geometric), rows),
    'agm/harmonic': ratios.row_mean(jnp.exp(harmonic), rows),
    'agm/gap': ratios.row_mean(jnp.exp(arithmetic) - jnp.exp(harmonic), rows),
    'agm/log_gap': ratios.row_mean(arithmetic - harmonic, rows),
    'agm/convergence_rate': 1 - ratios.row_mean(distance, rows),
  }


def iterates(
  log_ratio: jax.Array,
  mask: jax.Array,
  eps_low: ratios.Scalar,
  eps_high: ratios.Scalar,
) -> dict[str, jax.Array]:
  """Iterates a_0 to a_K and h_0 to h_K, K = MAX_ITERATIONS, start included.

  Near the policy that sampled A and H are within a percent of each other, which
  a controller that looks at (a - h) / (a + h) takes for convergence. So beside
  them stand the iterates from A^(1/w) and H^(1/w), where

    w = (log(1 + eps_high) - log(1 - eps_low)) / 2

  is half the width of the clip range in nats: 1 is the policy that sampled, e
  and 1/e are the edges of a range that is even in the log, and a gap of order 1
  is one that the clip can tell. Their logs are bounded at +-8, where a range of
  no width puts all that is not on-policy.

  Args:
    log_ratio: [B, T] nats, 0 off the mask.
    mask: [B, T] bool, true on the trained tokens.
    eps_low: [] ratio's distance below 1; 1 leaves that side out of w.
    eps_high: [] ratio's distance above 1; inf leaves that side out.

  Returns:
    [K + 1] by name; 0 where no row has a token.
  """
  rows, log_a, log_h = _ends(log_ratio, mask)
  width = _half_width(eps_low, eps_high)
  in_widths = lambda x: jnp.clip(
    jnp.where(x == 0, 0, x / width), -_MAX_WIDTHS, _MAX_WIDTHS
  )
  both = lambda x: jnp.stack([x, in_widths(x)])
  log_a, log_h = means.arithmetic_harmonic(
    both(log_a), both(log_h), MAX_ITERATIONS
  )
  rows_mean = jax.vmap(jax.vmap(lambda x: ratios.row_mean(jnp.exp(x), rows)))
  (a, a_clip), (h, h_clip) = rows_mean(log_a).T, rows_mean(log_h).T
  return {
    'agm/arithmetic_iterates': a,
    'agm/harmonic_iterates': h,
    'agm/arithmetic_iterates_clip': a_clip,
    'agm/harmonic_iterates_clip': h_clip,
  }


def _ends(log_ratio, mask):
  """Rows with tokens, and their log A and log H [B]."""
  log_ratio = jax.lax.stop_gradient(log_ratio)
  power_mean = lambda p: means.log_power_mean(log_ratio, mask, p)
  return jnp.any(mask, axis=1), power_mean(1), power_mean(-1)


def _half_width(eps_low, eps_high):
  """[] nats; of one side where the other is open, 1 where both are."""
  sides = jnp.stack(
    [
      -jnp.log1p(-jnp.asarray(eps_low, jnp.float32)),
      jnp.log1p(jnp.asarray(eps_high, jnp.float32)),
    ]
  )
  closed = jnp.isfinite(sides)
  width = jnp.sum(jnp.where(closed, sides, 0)) / jnp.maximum(jnp.sum(closed), 1)
  return jnp.where(jnp.any(closed), width, 1)
