"""What so many seeds can show."""

import math

from scipy import special
from scipy import stats

from hmpo_jax.analysis import statistics


def smallest_detectable(
  sd: float,
  n: int,
  alpha: float = 0.05,
  num_contrasts: int = 1,
  power: float = 0.8,
) -> float:
  """Mean difference that a paired t-test finds with the given power.

  By the noncentral t distribution, at the first step of Holm's procedure, so at
  level alpha / num_contrasts. `sign_flip` finds it in 80 % for 10 seeds and one
  contrast, 77 % for 10 and four, 60 % for 8 and four (its p-values are coarse),
  and never where not `can_answer`.

  Args:
    sd: standard deviation of the differences over seeds.
    n: number of seeds.
    alpha: family-wise error rate.
    num_contrasts: K.
    power: chance to find it, in (alpha, 1).

  Returns:
    The difference, in units of sd; inf for n < 2.
  """
  if n < 2:
    return math.inf
  threshold = stats.t.isf(
    statistics.checked_rate(alpha) / (2 * num_contrasts), n - 1
  )
  # The chance of a finding with the wrong sign is left out; it is negligible.
  shift = special.nctdtrinc(n - 1, 1 - power, threshold)
  return float(shift * sd / math.sqrt(n))


def least_p(n: int) -> float:
  """Smallest p that `sign_flip` of n <= 20 seeds can give: 2^(1 - n)."""
  return min(1.0, 2.0 ** (1 - n))


def can_answer(n: int, k: int, alpha: float = 0.05) -> bool:
  """Whether n seeds can show one of k contrasts: k 2^(1 - n) <= alpha."""
  return k * least_p(n) <= alpha
