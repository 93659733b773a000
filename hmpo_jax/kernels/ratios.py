"""Log-ratios of the tokens of a mask, and means that skip empty rows."""

import chex
import jax
import jax.numpy as jnp


def log_ratio(
    logprobs: jax.Array,
    old_logprobs: jax.Array,
    mask: jax.Array,
    log_ratio_max: jax.Array | float,
    flow_to_old: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
  """[B, T] x within +-log_ratio_max, 0 off the mask; gradient 0 beyond.

  A token that both policies rule out (-inf twice) counts as clamped, to 0.
  """
  chex.assert_rank([logprobs, old_logprobs, mask], 2)
  chex.assert_equal_shape([logprobs, old_logprobs, mask])
  chex.assert_type(mask, bool)
  dtype = jnp.promote_types(logprobs.dtype, jnp.float32)
  new = jnp.where(mask, logprobs, 0).astype(dtype)
  old = jnp.where(mask, old_logprobs, 0).astype(dtype)
  if flow_to_old:
    new = jax.lax.stop_gradient(new)
  else:
    old = jax.lax.stop_gradient(old)
  ruled_out = jnp.isneginf(new) & jnp.isneginf(old)
  difference = jnp.where(ruled_out, 0, new - old)
  clamped = ruled_out | (jnp.abs(difference) > log_ratio_max)
  bounded = jnp.clip(difference, -log_ratio_max, log_ratio_max)
  x = jnp.where(clamped, jax.lax.stop_gradient(bounded), difference)
  count = jnp.maximum(jnp.sum(mask), 1)
  return x, {'ratio/clamped_frac': jnp.sum(clamped) / count}


def of_rows(advantages: jax.Array,
            mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Which rows have tokens, and the advantages [B], 0 in all other rows."""
  chex.assert_shape(advantages, mask.shape[:1])
  rows = jnp.any(mask, axis=1)
  return rows, jax.lax.stop_gradient(jnp.where(rows, advantages, 0))


def row_mean(values: jax.Array, rows: jax.Array) -> jax.Array:
  """[] mean over the rows that have tokens; 0 if there is none."""
  total = jnp.sum(jnp.where(rows, values, 0))
  return total / jnp.maximum(jnp.sum(rows), 1)


def token_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
  """[B] mean over the tokens of each row; 0 for a row without tokens."""
  total = jnp.sum(jnp.where(mask, values, 0), axis=1)
  return total / jnp.maximum(jnp.sum(mask, axis=1), 1)
