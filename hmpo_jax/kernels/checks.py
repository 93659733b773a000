"""Checks of the arrays that kernels take, by messages that name the argument.

They look at shapes and dtypes alone, which are known when a program is traced.
Arrays go by keyword, under the names of the arguments; AssertionError says
which of them is not as it must be, and how it is.
"""

from typing import Any

import jax.numpy as jnp

_KINDS = {float: jnp.floating, int: jnp.integer, bool: jnp.bool_}


def ranks(expected: int, **arrays: Any) -> None:
  """All have so many axes."""
  for name, x in arrays.items():
    if jnp.ndim(x) != expected:
      raise AssertionError(
        f'{name} has rank {jnp.ndim(x)}, shape '
        f'{jnp.shape(x)}: must have rank {expected}'
      )


def shapes(expected: tuple[int | None, ...], **arrays: Any) -> None:
  """All have this shape, where None is any size."""
  for name, x in arrays.items():
    shape = jnp.shape(x)
    if len(shape) != len(expected) or any(
      want not in (None, size) for want, size in zip(expected, shape)
    ):
      wanted = str(expected).replace('None', 'any')
      raise AssertionError(f'{name} has shape {shape}: must be {wanted}')


def same_shape(**arrays: Any) -> None:
  """All have one shape."""
  if len(set(map(jnp.shape, arrays.values()))) > 1:
    found = ', '.join(f'{name} {jnp.shape(x)}' for name, x in arrays.items())
    raise AssertionError(f'must have one shape: {found}')


def dtypes(expected: Any, **arrays: Any) -> None:
  """All are of this dtype, or of this kind: float, int or bool."""
  kind = _KINDS.get(expected)
  for name, x in arrays.items():
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, kind or expected):
      wanted = expected.__name__ if kind else expected
      raise AssertionError(f'{name} has dtype {dtype}: must be {wanted}')


def divides(part: int, whole: int, what: str) -> None:
  """The first number divides the second, 0 divides 0 alone."""
  if whole % part if part else whole:
    raise AssertionError(f'{what}: {part} must divide {whole}')
