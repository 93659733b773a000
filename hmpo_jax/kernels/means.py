"""Power means of positive values given by their logs, stable for every order.

See "Inequalities" by Hardy, Littlewood and Polya, chapter 2.
"""

import math

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import checks
from hmpo_jax.kernels import precision

# log M_p and log M_0 differ by p var(log x) / 2 only: p = 0 may be this.
_TINY = 1e-20
# Below it in magnitude, 12 terms of a Taylor series are exact to float32, and
# 14 to float64.
_SMALL = 0.5
# Of (exp(e) - 1) / e and of (1 + (l - 1) exp(l)) / l^2.
_LESS_1 = [1 / math.factorial(k + 1) for k in range(14)]
_DIVERGENCE = [1 / (math.factorial(k) * (k + 2)) for k in range(14)]


def log_power_mean(
  log_x: jax.Array, mask: jax.Array, p: jax.Array | float
) -> jax.Array:
  """Log of the power mean over tokens, log M_p(x).

  M_p(x) = (1/n sum_t x_t^p)^(1/p) and M_0(x) = exp(1/n sum_t log x_t). Orders
  1, 0 and -1 are the arithmetic, geometric and harmonic means; those of inf and
  -inf are the largest and the smallest value, of which tokens that are equal
  share the derivative. The derivatives are

    d log M_p / d log x_t = w_t = softmax(p log x)_t
    d log M_p / dp        = sum_t w_t log(n w_t) / p^2, var(log x) / 2 at p = 0

  and can be differentiated in turn. Rounding costs about eps max |log x|.

  Args:
    log_x: [B, T] logs of the values, in nats; ignored where mask is false.
    mask: [B, T] bool, true on the tokens that count.
    p: [] or [B] order of the mean; traced, differentiable, any number.

  Returns:
    [B] log M_p, in nats; 0 for a row whose mask is empty.
  """
  log_x, p = _checked(log_x, mask, p)
  _, anchor, _ = _anchored(log_x, mask, p)
  return anchor[:, 0] + _above_anchor(log_x, mask, p)


def token_weights(
  log_x: jax.Array, mask: jax.Array, p: jax.Array | float
) -> jax.Array:
  """Share of each token in the gradient of log M_p: softmax(p log x).

  Args:
    log_x: [B, T] logs of the values, in nats; ignored where mask is false.
    mask: [B, T] bool, true on the tokens that count.
    p: [] or [B] order of the mean.

  Returns:
    [B, T] weights, 0 off the mask; a row sums to 1, or to 0 if it is empty.
  """
  log_x, p = _checked(log_x, mask, p)
  return _weights(log_x, mask, p)


def effective_sample_size(weights: jax.Array, mask: jax.Array) -> jax.Array:
  """1 / (n sum_t w_t^2): the share of its tokens that a row makes use of.

  Args:
    weights: [B, T] from `token_weights`, 0 off the mask.
    mask: [B, T] bool.

  Returns:
    [B] from 1 / n, all weight on one token, to 1, equal weights; 0 for a row
    whose mask is empty.
  """
  square = jnp.sum(weights**2, axis=1)
  count = jnp.sum(mask, axis=1, dtype=square.dtype)
  return jnp.where(count > 0, 1 / jnp.where(square > 0, square * count, 1), 0)


def weight_entropy(weights: jax.Array) -> jax.Array:
  """-sum_t w_t log w_t of `token_weights` [B, T]: [B] nats, 0 to log n."""
  log_weights = jnp.log(jnp.where(weights > 0, weights, 1))
  return -jnp.sum(weights * log_weights, axis=1)


def arithmetic_harmonic(
  log_a: jax.Array, log_h: jax.Array, num_steps: int
) -> tuple[jax.Array, jax.Array]:
  """Iterates a' = (a + h) / 2 and h' = 2 a h / (a + h), in logs.

  The product a h does not change, and both converge quadratically to
  sqrt(a_0 h_0); with d = log a - log h a step is d' = 2 log cosh(d / 2).

  Args:
    log_a: [...] log of the arithmetic start, in nats; finite: of 0 and
      infinity the product says nothing, and iterates are no numbers.
    log_h: [...] log of the harmonic start, in nats; finite.
    num_steps: number of iterations, a Python int.

  Returns:
    Logs of a and of h, each [num_steps + 1, ...], start included.
  """
  middle = jnp.add(log_a, log_h) / 2
  half_gap = jnp.subtract(log_a, log_h) / 2

  def iterate(half_gap, _):
    half_gap = _log_cosh(half_gap)
    return half_gap, half_gap

  # A loop: unrolled it would be a tenth of the program of a train step.
  _, later = jax.lax.scan(iterate, half_gap, length=num_steps)
  stacked = jnp.concatenate([half_gap[None], later])
  return middle + stacked, middle - stacked


def arithmetic_harmonic_limit(log_a: jax.Array, log_h: jax.Array) -> jax.Array:
  """Log of sqrt(a h), where both iterates of `arithmetic_harmonic` end.

  With a = M_1 and h = M_-1 of the same tokens it is their geometric mean M_0
  only for two tokens or log-symmetric ones.
  """
  return jnp.add(log_a, log_h) / 2


def _checked(log_x, mask, p):
  """log_x, 0 off the mask, and p [B], not 0; both in float32 or better."""
  checks.ranks(2, log_x=log_x, mask=mask)
  checks.same_shape(log_x=log_x, mask=mask)
  checks.dtypes(bool, mask=mask)
  dtype = precision.dtype_of(log_x)
  log_x = jnp.where(mask, log_x, 0).astype(dtype)
  # Of an infinite order times 0 there is no number; of the largest there is.
  largest = jnp.finfo(dtype).max
  p = jnp.clip(jnp.asarray(p, dtype), -largest, largest)
  p = jnp.broadcast_to(p, log_x.shape[:1])
  constant = jax.lax.stop_gradient(p)
  return log_x, p + jnp.where(jnp.abs(constant) < _TINY, _TINY - constant, 0)


def _log_cosh(x):
  """log cosh x = 1/2 log1p(sinh(x)^2) for small x, |x| - log 2 + ... else."""
  x = jnp.abs(x)
  small = jnp.minimum(x, 1)
  return jnp.where(
    x < 1,
    jnp.log1p(jnp.sinh(small) ** 2) / 2,
    x + jnp.log1p(jnp.exp(-2 * x)) - jnp.log(2.0),
  )


@jax.custom_jvp
def _above_anchor(log_x, mask, p):
  """[B] log M_p - a = log(1/n sum_t exp(p (log x_t - a))) / p, a the anchor."""
  powers, is_near = _powers(log_x, mask, p)
  mean, is_near = _mean(powers, mask), is_near[:, 0]
  log_power = jnp.where(is_near, jnp.log1p(mean), jnp.log(mean))
  return log_power / p


@_above_anchor.defjvp
def _above_anchor_jvp(primals, tangents):
  log_x, mask, p = primals
  log_x_dot, _, p_dot = tangents
  above_anchor = _above_anchor(log_x, mask, p)
  slope = _slope_in_p(log_x, mask, p, above_anchor)
  weights = _weights(log_x, mask, p)
  return above_anchor, jnp.sum(weights * log_x_dot, axis=1) + slope * p_dot


def _slope_in_p(log_x, mask, p, above_anchor):
  """[B] d log M_p / dp = KL(w || uniform) / p^2.

  With d = log x - log M_p and l = p d = log(n w) it is the mean of
  (1 + (l - 1) e^l) / p^2, or d^2 times a series in l: no term is negative,
  while the plain w l nearly cancel where one token in many differs.
  """
  offset, _, _ = _anchored(log_x, mask, p)
  distance = jnp.where(mask, offset - above_anchor[:, None], 0)
  log_share = p[:, None] * distance
  is_small = jnp.abs(log_share) < _SMALL
  series = _polynomial(_DIVERGENCE, jnp.where(is_small, log_share, 0))
  # Bounded: 0 times infinity is NaN. exp(-1e4) is 0 in float64 too.
  low = jnp.maximum(log_share, -1e4)
  plain = 1 + (low - 1) * jnp.exp(low)
  square = jnp.where(is_small, 1, p[:, None]) ** 2
  terms = jnp.where(is_small, distance**2 * series, plain / square)
  return _mean(jnp.where(mask, terms, 0), mask)


def _weights(log_x, mask, p):
  """[B, T] softmax(p log x), 0 off the mask."""
  powers, is_near = _powers(log_x, mask, p)
  mean = _mean(powers, mask)[:, None] + is_near
  total = mean * _count(mask, p.dtype)[:, None]
  return jnp.where(mask, powers + is_near, 0) * (1 / total)


def _powers(log_x, mask, p):
  """[B, T] exp(p (log x - anchor)), 0 off the mask; less 1 in the near rows."""
  offset, _, is_near = _anchored(log_x, mask, p)
  exponent = p[:, None] * offset
  small = jnp.where(is_near, exponent, 0)
  # Not expm1, which on CPU takes as long as all the rest.
  less_1 = small * _polynomial(_LESS_1, small)
  powers = jnp.where(is_near, less_1, jnp.exp(exponent))
  return jnp.where(mask, powers, 0), is_near


def _anchored(log_x, mask, p):
  """[B, T] log x - anchor, 0 off the mask; the anchor; whether a row is near.

  In a near row, whose powers are close to each other, the anchor is the mean:
  around it the terms of first order cancel before they are rounded, so that no
  digit is lost as p -> 0, where logsumexp loses all of them. Else it is the
  value with the largest power, so that none overflows. It is [B, 1] and a
  constant to jvp.
  """
  x, p = jax.lax.stop_gradient((log_x, p[:, None]))
  high = jnp.max(x, axis=1, keepdims=True, where=mask, initial=-jnp.inf)
  low = jnp.min(x, axis=1, keepdims=True, where=mask, initial=jnp.inf)
  is_near = jnp.abs(p) * (high - low) < _SMALL
  # Within the range, equal values are exactly their mean.
  mean = jnp.clip(_mean(x, mask)[:, None], low, high)
  anchor = jnp.where(is_near, mean, jnp.where(p < 0, low, high))
  anchor = jnp.where(low > high, 0, anchor)  # empty rows
  return jnp.where(mask, log_x - anchor, 0), anchor, is_near


def _polynomial(coefficients, x):
  if x.dtype == jnp.float32:
    coefficients = coefficients[:12]
  total = jnp.full_like(x, coefficients[-1])
  for coefficient in coefficients[-2::-1]:
    total = total * x + coefficient
  return total


def _mean(x, mask):
  """[B] mean over the mask of values that are 0 off it; 0 for empty rows."""
  return jnp.sum(x, axis=1) / _count(mask, x.dtype)


def _count(mask, dtype):
  """[B] tokens of each row, 1 for empty rows."""
  # In floating point: XLA adds integers slowly on CPU.
  return jnp.maximum(jnp.sum(mask, axis=1, dtype=dtype), 1)
