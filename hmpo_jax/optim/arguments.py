"""Checks of the numbers that optimizers take, as far as they are known."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_number(
  name: str, value: Any, is_allowed: Callable[[float], bool], allowed: str
) -> None:
  """Raises ValueError if a number isn't allowed, or is none.

  Args:
    name: of the argument.
    value: Python number or array []; a traced one can't be looked at.
    is_allowed: whether a value will do.
    allowed: what will, for the message.
  """
  is_array = isinstance(value, (jax.Array, np.ndarray, np.generic))
  if not is_array and not isinstance(value, (int, float)):
    raise ValueError(f'{name}={value!r}: must be a number, {allowed}')
  if jnp.ndim(value) or jnp.iscomplexobj(value):
    raise ValueError(
      f'{name} of shape {jnp.shape(value)} and dtype '
      f'{jnp.result_type(value)}: must be one real number, '
      f'{allowed}'
    )
  if isinstance(value, jax.core.Tracer):
    return
  if not is_allowed(float(value)):
    raise ValueError(f'{name}={value!r}: must be {allowed}')
