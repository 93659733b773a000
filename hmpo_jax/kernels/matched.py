"""Order of a row that its clipped fraction asks for: kind 'matched'."""

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import ratios

# Halvings of [0, 1]: what is left is float32's spacing below 1.
_NUM_HALVINGS = 24
# nats^2, variance of log-ratios below which every order gives the same mean.
_NO_SPREAD = 1e-12


def orders(
  log_ratio: jax.Array, mask: jax.Array, clipped: jax.Array
) -> jax.Array:
  """The largest p in [0, 1] with 1 - ESS(p) <= (1 - f) (1 - ESS(1)).

  ESS(p) = (sum a^p)^2 / (n sum a^2p) is the share of its n tokens that count in
  a row of clipped ratios a, f the fraction of them that was clipped. Where that
  comes from stands at `exponents.of_rows`.

  Args:
    log_ratio: [B, T] after the token clip, in nats; ignored off the mask.
    mask: [B, T] bool, true on the tokens that count.
    clipped: [B, T] bool, tokens that the clip stopped; ignored off the mask.

  Returns:
    [B] p in the dtype of log_ratio, by bisection within 1e-6 of the root; 1
    where a row has no token, no clipped one, or a variance below 1e-12.
  """
  largest = jnp.max(
    log_ratio, axis=1, keepdims=True, where=mask, initial=-jnp.inf
  )
  offset = jnp.where(mask, log_ratio - largest, 0)  # no power of it overflows
  clipped_frac = ratios.token_mean(clipped.astype(offset.dtype), mask)
  target = (1 - clipped_frac) * _dispersion(offset, mask, 1.0)

  def halve(_, bracket):
    low, high = bracket
    middle = (low + high) / 2
    below = _dispersion(offset, mask, middle[:, None]) <= target
    return jnp.where(below, middle, low), jnp.where(below, high, middle)

  zeros = jnp.zeros_like(target)
  p, _ = jax.lax.fori_loop(0, _NUM_HALVINGS, halve, (zeros, zeros + 1))
  centred = offset - ratios.token_mean(offset, mask)[:, None]
  alike = ratios.token_mean(centred**2, mask) < _NO_SPREAD
  return jnp.where(alike | (clipped_frac == 0), 1, p)


def _dispersion(offset, mask, p):
  """[B] 1 - ESS(p) = var(a^p) / mean(a^2p), offset = log a <= 0.

  The difference 1 - ESS would round to 0 where the tokens are close; here
  expm1 keeps the digits of their powers, which differ from 1 by little.
  """
  power_less_1 = jnp.expm1(p * offset)
  centred = power_less_1 - ratios.token_mean(power_less_1, mask)[:, None]
  square = ratios.token_mean((1 + power_less_1) ** 2, mask)  # 0 for empty rows
  return ratios.token_mean(centred**2, mask) / jnp.where(square > 0, square, 1)
