"""Reductions that keep what others may lose, and one that keeps nothing."""

import jax
import jax.numpy as jnp


def nan_max(
  x: jax.Array, axis: int | tuple[int, ...] | None = None
) -> jax.Array:
  """Largest entries, NaN where one is NaN.

  `jnp.max` promises that too, but XLA on CPUs drops NaN where it vectorises the
  reduction.

  Args:
    x: any float array.
    axis: to reduce over; None is all.
  """
  return jnp.where(jnp.any(jnp.isnan(x), axis), jnp.nan, jnp.max(x, axis))


def digest(*arrays: jax.Array) -> jax.Array:
  """A number that tells apart arrays of integers or booleans.

    h(sum_i (2 h(i) + 1) x_i mod 2^32) / 2^8, rounded down,

  over all entries, in order, with h the last steps of MurmurHash3: a
  multilinear hash, see "Strongly universal string hashing is fast" by Lemire
  and Kaser (https://arxiv.org/abs/1202.4961), whose odd weights let no change of
  a single entry cancel. Equal arrays have equal digests on every
  device and under every transformation, as integers wrap around alike; two that
  differ share one with a chance of about 2^-24. Shapes don't enter.

  Args:
    *arrays: of integers within 32 bits, or of booleans.

  Returns:
    [] int32 from 0 to 2^24 - 1, which float32 holds exactly; 0 of no entry.
  """
  flat = jnp.concatenate([x.astype(jnp.uint32).reshape(-1) for x in arrays])
  weights = 2 * _scrambled(jnp.arange(flat.size, dtype=jnp.uint32)) + 1
  total = jnp.sum(weights * flat, dtype=jnp.uint32)
  return (_scrambled(total) >> 8).astype(jnp.int32)


def _scrambled(x):
  """A permutation of uint32: MurmurHash3's finalizer."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
