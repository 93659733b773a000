"""Subsets of a few values: what flipping the signs of some of them sums to."""

import numpy as np

_MAX_EXACT = 20  # values whose 2^n subsets are all made
_NUM_DRAWN = 1 << 17  # for more values


def of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Sums and sizes of subsets, one of each pair of a subset and the rest.

  Flipping the signs of a subset turns the sum into sum(values) - 2 sum(subset);
  flipping those of the rest gives the negative. The pair of the empty subset
  and the whole, which is what was observed, is left out.

  Args:
    values: [n] float64, n > 0.

  Returns:
    [m] sums and [m] sizes in 1..n - 1, with m = 2^(n - 1) - 1 for n <= 20. For
    more values 2^17 random subsets, the same at every call.
  """
  n = len(values)
  if n > _MAX_EXACT:
    drawn = np.random.default_rng(0).random((_NUM_DRAWN, n)) < 0.5
    sizes = drawn.sum(1)
    drawn = drawn[(sizes > 0) & (sizes < n)]
    return drawn @ values, drawn.sum(1)
  sums, sizes = np.zeros(1), np.zeros(1)
  for value in values[:-1]:
    sums = np.concatenate([sums, sums + value])
    sizes = np.concatenate([sizes, sizes + 1])
  return sums[1:], sizes[1:]
