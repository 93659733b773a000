"""Power means of positive values given by their logs, stable for every order.

See "Inequalities" by Hardy, Littlewood and Polya, chapter 2.
"""

import chex
import jax
import jax.numpy as jnp

# |p| max|d| below this takes the series in p: expm1(p d) / p has lost digits.
_SERIES = 1e-3
# The derivative in p divides by p^2, so that its series must reach further.
_SERIES_DERIVATIVE = 3e-2


def log_power_mean(log_x: jax.Array, mask: jax.Array,
                   p: jax.Array | float) -> jax.Array:
  """Log of the power mean over tokens, log M_p(x).

  M_p(x) = (1/n sum_t x_t^p)^(1/p) and M_0(x) = exp(1/n sum_t log x_t). Orders
  1, 0 and -1 are the arithmetic, geometric and harmonic means. The derivatives
  are

    d log M_p / d log x_t = w_t = softmax(p log x)_t
    d log M_p / dp        = sum_t w_t log(n w_t) / p^2, var(log x) / 2 at p = 0.

  Args:
    log_x: [B, T] logs of the values, in nats; ignored where mask is false.
    mask: [B, T] bool, true on the tokens that count.
    p: [] or [B] order of the mean; traced, differentiable, any real number.

  Returns:
    [B] log M_p, in nats; 0 for a row whose mask is empty.
  """
  chex.assert_rank([log_x, mask], 2)
  chex.assert_equal_shape([log_x, mask])
  chex.assert_type(mask, bool)
  log_x = jnp.where(mask, log_x, 0)
  dtype = jnp.promote_types(log_x.dtype, jnp.float32)
  p = jnp.broadcast_to(jnp.asarray(p, dtype), log_x.shape[:1])
  return _log_power_mean(log_x.astype(dtype), mask, p)


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
  deviation, _ = _center(jnp.where(mask, log_x, 0), mask)
  return _softmax(jnp.reshape(jnp.asarray(p), (-1, 1)) * deviation, mask)


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


def _log_cosh(x):
  """log cosh x = 1/2 log1p(sinh(x)^2) for small x, |x| - log 2 + ... else."""
  x = jnp.abs(x)
  small = jnp.minimum(x, 1)
  return jnp.where(x < 1,
                   jnp.log1p(jnp.sinh(small)**2) / 2,
                   x + jnp.log1p(jnp.exp(-2 * x)) - jnp.log(2.))


@jax.custom_jvp
def _log_power_mean(log_x, mask, p):
  deviation, mean = _center(log_x, mask)
  reach = jnp.abs(p) * jnp.max(jnp.abs(deviation), axis=1)
  safe_p = jnp.where(p == 0, 1, p)
  far = _log_mean_exp(safe_p[:, None] * deviation, mask) / safe_p
  near_exponent = jnp.where((reach <= 1)[:, None], p[:, None] * deviation, 0)
  near = jnp.log1p(_mean(jnp.expm1(near_exponent), mask)) / safe_p
  k2, k3, k4 = _cumulants(
      jnp.where((reach < _SERIES)[:, None], deviation, 0), mask)
  series = p * (k2 / 2 + p * (k3 / 6 + p * k4 / 24))
  value = jnp.where(reach < _SERIES, series, jnp.where(reach <= 1, near, far))
  return mean + value


@_log_power_mean.defjvp
def _log_power_mean_jvp(primals, tangents):
  log_x, mask, p = primals
  log_x_dot, _, p_dot = tangents
  deviation, _ = _center(log_x, mask)
  exponent = p[:, None] * deviation
  weights = _softmax(exponent, mask)
  slope = _slope_in_p(deviation, exponent, mask, p)
  tangent = jnp.sum(weights * log_x_dot, axis=1) + slope * p_dot
  return _log_power_mean(log_x, mask, p), tangent


def _slope_in_p(deviation, exponent, mask, p):
  """[B] d log M_p / dp = KL(w || uniform) / p^2, by its series near p = 0."""
  near = jnp.max(jnp.abs(exponent), axis=1) < _SERIES_DERIVATIVE
  log_weights = exponent - _log_mean_exp(exponent, mask)[:, None]
  weights = _softmax(exponent, mask)
  kl = jnp.sum(jnp.where(mask, weights * log_weights, 0), axis=1)
  k2, k3, k4 = _cumulants(jnp.where(near[:, None], deviation, 0), mask)
  series = k2 / 2 + p * (k3 / 3 + p * k4 / 8)
  return jnp.where(near, series, kl / jnp.where(near, 1, p)**2)


def _center(x, mask):
  """Deviations from the row's mean over its tokens, 0 off the mask; and it."""
  # The mean is summed relative to one of the tokens: equal values give 0.
  first = jnp.take_along_axis(x, jnp.argmax(mask, axis=1)[:, None], axis=1)
  offset = jnp.where(mask, x - first, 0)
  mean = _mean(offset, mask)[:, None]
  return jnp.where(mask, offset - mean, 0), (first + mean)[:, 0]


def _mean(x, mask):
  """[B] mean over the mask of values that are 0 off it; 0 for empty rows."""
  return jnp.sum(x, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)


def _cumulants(deviation, mask):
  """Second to fourth cumulants of deviations that are 0 off the mask."""
  square = deviation**2
  k2 = _mean(square, mask)
  return k2, _mean(deviation * square, mask), _mean(square**2, mask) - 3 * k2**2


def _log_mean_exp(x, mask):
  """[B] log(1/n sum exp x) over the mask, shifted by the row's maximum."""
  peak = jnp.max(jnp.where(mask, x, -jnp.inf), axis=1)
  peak = jnp.where(jnp.any(mask, axis=1), peak, 0)
  shifted = jnp.where(mask, x - peak[:, None], -jnp.inf)
  mean = _mean(jnp.exp(shifted), mask)
  return peak + jnp.log(jnp.where(mean > 0, mean, 1))


def _softmax(x, mask):
  """[B, T] softmax over the mask, 0 off it."""
  peak = jnp.max(jnp.where(mask, x, -jnp.inf), axis=1, keepdims=True)
  peak = jnp.where(jnp.any(mask, axis=1, keepdims=True), peak, 0)
  unscaled = jnp.where(mask, jnp.exp(jnp.where(mask, x - peak, 0)), 0)
  total = jnp.sum(unscaled, axis=1, keepdims=True)
  return unscaled / jnp.where(total > 0, total, 1)
