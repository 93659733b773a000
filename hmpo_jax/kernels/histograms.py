"""Counts of values in fixed bins, made where the values are.

A step's ratios and token weights never leave the device; their counts do.
"""

import math

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import checks

BINS = 101
_LINEAR = 0.02
_LARGEST = 1.0
_WIDTH = 2 * math.asinh(_LARGEST / _LINEAR) / BINS

# [BINS + 1] edges, in the unit of the values: 0.02 sinh(k w), k from -50.5 to
# 50.5. Meant for logs in nats. Around 0 a bin is 0.002 wide, so that a policy
# that hardly moves, sigma = 0.01, shows as a shape; from 0.02 on each is a
# tenth wider than the one before. They end at a factor of e: a clip range is
# narrower, and TensorBoard draws 30 bins from the lowest value to the highest,
# so that one response far off would leave of all others a single peak. 0 has a
# bin around it: on-policy, all is there.
EDGES = tuple(
  _LINEAR * math.sinh((k - BINS / 2) * _WIDTH) for k in range(BINS + 1)
)


def counts(x: jax.Array, where: jax.Array) -> jax.Array:
  """How many values lie in each bin of EDGES.

  Args:
    x: [...] float; beyond the outermost edges, infinities too, it counts in
      the outermost bin. NaN counts nowhere.
    where: [...] bool, true on the values that count.

  Returns:
    [BINS] float32 counts, exact below 2^24; no gradient flows. All 0 where
    nothing counts.
  """
  checks.same_shape(x=x, where=where)
  checks.dtypes(bool, where=where)
  x = jax.lax.stop_gradient(x)
  where &= ~jnp.isnan(x)
  bounded = jnp.clip(jnp.where(where, x, 0), -_LARGEST, _LARGEST)
  place = jnp.round(jnp.arcsinh(bounded / _LINEAR) / _WIDTH) + BINS // 2
  place = jnp.clip(place, 0, BINS - 1).astype(jnp.int32)
  return jnp.bincount(
    place.reshape(-1), where.reshape(-1).astype(jnp.float32), length=BINS
  )
