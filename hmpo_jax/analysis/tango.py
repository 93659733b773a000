"""Tango's score interval for the difference of two paired proportions."""

import math

from scipy import optimize

# The score is infinite at a difference of 1, which brentq can't use.
_MAX_SCORE = 1e9
_INSIDE = 1 - 1e-12


def interval(
  first_only: int, second_only: int, n: int, quantile: float
) -> tuple[float, float]:
  """Both ends, the differences d with |score(d)| = quantile.

  score(d) = (b - c - n d) / sqrt(n (2 q + d (1 - d))), where b and c count the
  pairs with yes in one arm only, and q is the probability of the second kind,
  fitted under d: the larger root of 2 n q^2 + ((2 n - b + c) d - b - c) q -
  c d (1 - d). See "Equivalence test and confidence interval for the difference
  in proportions for the paired-sample design" by Tango, Statistics in Medicine
  17 (1998).

  Args:
    first_only: b, pairs with yes in the first arm only.
    second_only: c, pairs with yes in the second arm only.
    n: number of pairs, positive.
    quantile: of the normal distribution, 1.96 for a 95 % interval.

  Returns:
    Ends within -1 and 1.
  """
  low = _lower(first_only, second_only, n, quantile)
  # The upper end is the lower one of the arms exchanged.
  return low, -_lower(second_only, first_only, n, quantile)


def _lower(b, c, n, quantile):
  """Smallest difference that the pairs agree with."""
  excess = lambda difference: _score(difference, b, c, n) - quantile
  if excess(-_INSIDE) <= 0:  # all pairs are of the second kind
    return -1.0
  return float(optimize.brentq(excess, -_INSIDE, (b - c) / n))


def _score(difference, b, c, n):
  """Distance of what was observed from a difference, in standard errors."""
  linear = (2 * n - b + c) * difference - b - c
  constant = -c * difference * (1 - difference)
  # Rounding takes what is 0 below it.
  root = math.sqrt(max(linear * linear - 8 * n * constant, 0))
  chance = max((root - linear) / (4 * n), 0)
  variance = n * (2 * chance + difference * (1 - difference))
  distance = b - c - n * difference
  if variance * _MAX_SCORE**2 <= distance**2:
    return math.copysign(_MAX_SCORE, distance) if distance else 0.0
  return distance / math.sqrt(variance)
