"""Power means of positive values given by their logs, stable for every order.

See "Inequalities" by Hardy, Littlewood and Polya, chapter 2.
"""

import chex
import jax
import jax.numpy as jnp

# log M_p and log M_0 differ by p var(log x) / 2 only: p = 0 may be this.
_TINY = 1e-20
# exp of it is finite, and above the number of tokens in any row.
_LARGE = 30.


def log_power_mean(log_x: jax.Array, mask: jax.Array,
                   p: jax.Array | float) -> jax.Array:
  """Log of the power mean over tokens, log M_p(x).

  M_p(x) = (1/n sum_t x_t^p)^(1/p) and M_0(x) = exp(1/n sum_t log x_t). Orders
  1, 0 and -1 are the arithmetic, geometric and harmonic means. The derivatives
  are

    d log M_p / d log x_t = w_t = softmax(p log x)_t
    d log M_p / dp        = sum_t w_t log(n w_t) / p^2, var(log x) / 2 at p = 0

  and can be differentiated in turn. Rounding costs about eps max |log x|.

  Args:
    log_x: [B, T] logs of the values, in nats; ignored where mask is false.
    mask: [B, T] bool, true on the tokens that count.
    p: [] or [B] order of the mean; traced, differentiable, any real number.

  Returns:
    [B] log M_p, in nats; 0 for a row whose mask is empty.
  """
  log_x, p = _checked(log_x, mask, p)
  return _log_power_mean(log_x, mask, p)


def token_weights(log_x: jax.Array, mask: jax.Array,
                  p: jax.Array | float) -> jax.Array:
  """Share of each token in the gradient of log M_p: softmax(p log x).

  Args:
    log_x: [B, T] logs of the values, in nats; ignored where mask is false.
    mask: [B, T] bool, true on the tokens that count.
    p: [] or [B] order of the mean.

  Returns:
    [B, T] weights, 0 off the mask; a row sums to 1, or to 0 if it is empty.
  """
  log_x, p = _checked(log_x, mask, p)
  return _softmax(log_x, mask, p)[0]


def effective_sample_size(weights: jax.Array, mask: jax.Array) -> jax.Array:
  """1 / (n sum_t w_t^2): the share of its tokens that a row makes use of.

  Args:
    weights: [B, T] from `token_weights`, 0 off the mask.
    mask: [B, T] bool.

  Returns:
    [B] from 1 / n, all weight on one token, to 1, equal weights; 0 for a row
    whose mask is empty.
  """
  count, square = jnp.sum(mask, axis=1), jnp.sum(weights**2, axis=1)
  return jnp.where(count > 0, 1 / jnp.where(square > 0, square * count, 1), 0)


def weight_entropy(weights: jax.Array) -> jax.Array:
  """-sum_t w_t log w_t of `token_weights` [B, T]: [B] nats, 0 to log n."""
  log_weights = jnp.log(jnp.where(weights > 0, weights, 1))
  return -jnp.sum(weights * log_weights, axis=1)


def arithmetic_harmonic(log_a: jax.Array, log_h: jax.Array,
                        num_steps: int) -> tuple[jax.Array, jax.Array]:
  """Iterates a' = (a + h) / 2 and h' = 2 a h / (a + h), in logs.

  The product a h does not change, and both converge quadratically to
  sqrt(a_0 h_0); with d = log a - log h a step is d' = 2 log cosh(d / 2).

  Args:
    log_a: [...] log of the arithmetic start, in nats.
    log_h: [...] log of the harmonic start, in nats.
    num_steps: number of iterations, a Python int.

  Returns:
    Logs of a and of h, each [num_steps + 1, ...], start included.
  """
  middle, half_gap = (log_a + log_h) / 2, (log_a - log_h) / 2
  half_gaps = [half_gap]
  for _ in range(num_steps):
    half_gaps.append(_log_cosh(half_gaps[-1]))
  stacked = jnp.stack(half_gaps)
  return middle + stacked, middle - stacked


def arithmetic_harmonic_limit(log_a: jax.Array, log_h: jax.Array) -> jax.Array:
  """Log of sqrt(a h), where both iterates of `arithmetic_harmonic` end.

  With a = M_1 and h = M_-1 of the same tokens it is their geometric mean M_0
  only for two tokens or log-symmetric ones.
  """
  return (log_a + log_h) / 2


def arithmetic_harmonic_distance(log_a: jax.Array, log_h: jax.Array,
                                 step: jax.Array | int) -> jax.Array:
  """(a_k - g) / (a_k + g) after k steps: tanh((log a - log h) / 4)^(2^k).

  g is the limit; the square at each step is the quadratic convergence.

  Args:
    log_a: [...] log of the arithmetic start, in nats.
    log_h: [...] log of the harmonic start, in nats, at most log_a.
    step: [] k.

  Returns:
    [...] from 0, no distance, to 1.
  """
  quarter = jnp.maximum(log_a - log_h, 0) / 4
  has_gap = quarter > 0
  decay = jnp.exp(-2 * jnp.where(has_gap, quarter, 1))
  # log tanh: near 1, where tanh rounds, by its distance from 1.
  log_start = jnp.where(decay < 0.5, jnp.log1p(-decay),
                        jnp.log(-jnp.expm1(-2 * quarter - ~has_gap)))
  log_start -= jnp.log1p(decay)
  # Finite, in the gradient too: 0 times infinity is not 0.
  squares = jnp.minimum(2.**step, jnp.finfo(log_start.dtype).max / 8)
  return jnp.where(has_gap, jnp.exp(squares * log_start), 0)


def _checked(log_x, mask, p):
  """log_x with 0 off the mask and p [B], both in float32 or better."""
  chex.assert_rank([log_x, mask], 2)
  chex.assert_equal_shape([log_x, mask])
  chex.assert_type(mask, bool)
  dtype = jnp.promote_types(log_x.dtype, jnp.float32)
  log_x = jnp.where(mask, log_x, 0).astype(dtype)
  return log_x, jnp.broadcast_to(jnp.asarray(p, dtype), log_x.shape[:1])


def _log_cosh(x):
  """log cosh x = 1/2 log1p(sinh(x)^2) for small x, |x| - log 2 + ... else."""
  x = jnp.abs(x)
  small = jnp.minimum(x, 1)
  return jnp.where(x < 1,
                   jnp.log1p(jnp.sinh(small)**2) / 2,
                   x + jnp.log1p(jnp.exp(-2 * x)) - jnp.log(2.))


@jax.custom_jvp
def _log_power_mean(log_x, mask, p):
  """m + (c + log1p(1/n sum expm1(p (log x_t - m) - c))) / p, m the mean.

  Around m the terms of first order cancel before they are rounded, so that no
  digit is lost as p -> 0, where logsumexp loses all of them; c > 0 only where
  exp would overflow.
  """
  deviation, mean = _center(log_x, mask)
  p = jnp.where(jnp.abs(p) < _TINY, _TINY, p)
  exponent = p[:, None] * deviation
  shift = jnp.maximum(jnp.max(exponent, axis=1, initial=0) - _LARGE, 0)
  shifted = jnp.where(mask, exponent - shift[:, None], 0)
  return mean + (shift + jnp.log1p(_mean(jnp.expm1(shifted), mask))) / p


@_log_power_mean.defjvp
def _log_power_mean_jvp(primals, tangents):
  log_x, mask, p = primals
  log_x_dot, _, p_dot = tangents
  weights, log_shares = _softmax(log_x, mask, p)
  slope = _slope_in_p(log_x, log_shares, mask, p)
  tangent = jnp.sum(weights * log_x_dot, axis=1) + slope * p_dot
  return _log_power_mean(log_x, mask, p), tangent


def _slope_in_p(log_x, log_shares, mask, p):
  """[B] d log M_p / dp = KL(w || uniform) / p^2, by its series near p = 0.

  With l = log(n w) the divergence is the mean of 1 + (l - 1) e^l, a sum of
  positive terms: the plain w l nearly cancels where one token in many differs.
  """
  deviation, _ = _center(log_x, mask)
  # Rounding costs eps / reach of the divergence, and the series reach^3 / 15.
  reach = jnp.abs(p) * jnp.max(jnp.abs(deviation), axis=1, initial=0)
  near = reach < jnp.finfo(p.dtype).eps**0.25
  terms = log_shares * jnp.exp(log_shares) - jnp.expm1(log_shares)
  divergence = _mean(terms, mask) / jnp.where(near, 1, p)**2
  square = jnp.where(near[:, None], deviation, 0)**2
  k2, k3 = _mean(square, mask), _mean(deviation * square, mask)
  k4 = _mean(square**2, mask) - 3 * k2**2
  return jnp.where(near, k2 / 2 + p * (k3 / 3 + p * k4 / 8), divergence)


def _softmax(log_x, mask, p):
  """[B, T] weights w = softmax(p log x), 0 off the mask, and log(n w)."""
  # Relative to the largest term, close tokens differ without rounding.
  p = p[:, None]
  peak = jnp.where(p < 0, -_largest(-log_x, mask), _largest(log_x, mask))
  exponent = p * jnp.where(mask, log_x - peak, 0)
  powers = jnp.where(mask, jnp.exp(exponent), 0)
  # An empty row has no powers: 1 keeps its division and its log finite.
  total = jnp.sum(powers, axis=1, keepdims=True)
  total = jnp.where(total > 0, total, 1)
  count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
  log_shares = jnp.where(mask, exponent - jnp.log(total / count), 0)
  return powers / total, log_shares


def _center(x, mask):
  """Deviations from the row's mean over its tokens, 0 off the mask; and it."""
  # The mean is summed relative to the largest value: equal values give 0.
  largest = _largest(x, mask)
  offset = jnp.where(mask, x - largest, 0)
  mean = _mean(offset, mask)[:, None]
  return jnp.where(mask, offset - mean, 0), (largest + mean)[:, 0]


def _largest(x, mask):
  """[B, 1] largest value on the mask, a constant to jvp; 0 for empty rows."""
  largest = jnp.max(x, axis=1, keepdims=True, where=mask, initial=-jnp.inf)
  largest = jnp.where(jnp.any(mask, axis=1, keepdims=True), largest, 0)
  return jax.lax.stop_gradient(largest)


def _mean(x, mask):
  """[B] mean over the mask of values that are 0 off it; 0 for empty rows."""
  return jnp.sum(x, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)
