"""Attention logits as a narrow kernel has them, held in float32."""

import functools

import jax
import jax.numpy as jnp

DTYPES = ('float32', 'bfloat16', 'float16')


def check(logits_dtype: str) -> None:
  """Raises ValueError for a dtype that is none of DTYPES."""
  if logits_dtype not in DTYPES:
    raise ValueError(f'{logits_dtype=}: must be one of {", ".join(DTYPES)}')


def rounded(logits: jax.Array, logits_dtype: str) -> jax.Array:
  """Logits rounded to the nearest number of a dtype, in the dtype they have.

  What lies beyond the largest number of float16, 65504, becomes infinite; what
  is below its smallest normal one, 6.1e-5, becomes 0. The derivative is 1
  everywhere, as in a kernel whose backward pass takes the weights from narrow
  logits and hands on a wide gradient.

  Args:
    logits: any float array.
    logits_dtype: one of DTYPES; float32 leaves all as it is.
  """
  if logits_dtype == 'float32':
    return logits
  return _nearest(logits, logits_dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _nearest(x, dtype):
  info = jnp.finfo(dtype)
  # Not two conversions, which XLA may leave out.
  return jax.lax.reduce_precision(x, info.nexp, info.nmant)


@_nearest.defjvp
def _nearest_jvp(dtype, primals, tangents):
  return _nearest(*primals, dtype), tangents[0]
