"""Products of narrow floats with sums of float32 or better, on any backend."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def dtype_of(x: jax.Array) -> jnp.dtype:
  """float32, or what is wider; of a NumPy array what JAX makes of it.

  That is not its own float64 where JAX is at 32 bits, the limits of which are
  infinite there.
  """
  return jnp.promote_types(jnp.result_type(x), jnp.float32)


def einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """`jnp.einsum` of two arrays of one dtype, in `dtype_of` it."""
  return _product(lambda x, y, **to: jnp.einsum(equation, x, y, **to), x, y)


def dot(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
  """Product of two arrays of one dtype over one axis of each, as `einsum`."""
  axes = ((x_axis,), (y_axis,)), ((), ())
  return _product(
    lambda x, y, **to: jax.lax.dot_general(x, y, axes, **to), x, y
  )


def _product(function: Callable, x: jax.Array, y: jax.Array) -> jax.Array:
  """The CPU compiler fails on some layouts of narrow factors with wide sums.

  There the factors are widened first: their products are exact in float32
  either way.
  """
  dtype = dtype_of(x)
  if jnp.result_type(x) == dtype:
    return function(x, y, preferred_element_type=dtype)
  return jax.lax.platform_dependent(
    x,
    y,
    cpu=lambda x, y: function(x.astype(dtype), y.astype(dtype)),
    default=lambda x, y: function(x, y, preferred_element_type=dtype),
  )
