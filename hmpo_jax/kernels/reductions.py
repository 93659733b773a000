"""Reductions that keep what XLA's may lose."""

import jax
import jax.numpy as jnp


def nan_max(x: jax.Array,
            axis: int | tuple[int, ...] | None = None) -> jax.Array:
  """Largest entries, NaN where one is NaN.

  `jnp.max` promises that too, but XLA on CPUs drops NaN where it vectorises the
  reduction.

  Args:
    x: any float array.
    axis: to reduce over; None is all.
  """
  return jnp.where(jnp.any(jnp.isnan(x), axis), jnp.nan, jnp.max(x, axis))
