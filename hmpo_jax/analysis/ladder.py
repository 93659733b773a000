"""Where runs collapse: over a held-out curve, and over a ladder of rates.

A *ladder* is one experiment at several learning rates, its *rungs*. The mean
outcome over the rungs says how well an arm does on average over rates that
nobody tuned; the *critical rung* says how far up it goes before it falls.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from hmpo_jax.analysis import statistics

# Errors of a fall that noise alone may make: of two means of two evaluations.
_ERRORS = 4.0


class Critical(NamedTuple):
  """How far up a ladder one seed goes.

  Attributes:
    rung: log2 of the largest rate below the first collapse. Where the lowest
      rung collapses it is one spacing below that, where none does the highest.
    is_low: the lowest rung collapsed: the true one is at most this.
    is_high: no rung collapsed: the true one is at least this.
  """

  rung: float
  is_low: bool
  is_high: bool


def collapse(
  values: npt.ArrayLike, errors: npt.ArrayLike, margin: float
) -> int:
  """When a held-out curve collapses, if it does.

  With m_k the mean of evaluations k - 1 and k, and m_0 the first evaluation, of
  the start, the curve has collapsed at the first m_k that lies below the best
  earlier one by more than max(margin, 4 se). se, that of the difference of two
  such means, is taken as if evaluations were independent; they share their
  prompts, so it is at most that.

  Args:
    values: [m] held-out rewards, in the order of their steps.
    errors: [m] their standard errors over prompts.
    margin: fall that is no collapse, in units of the values.

  Returns:
    That k; -1 if there is none, as with fewer than two evaluations.
  """
  heights, noise = np.asarray(values, float), np.asarray(errors, float)
  if heights.ndim != 1 or heights.shape != noise.shape:
    raise ValueError(
      f'values and errors must be of shape [m]: {heights.shape=} {noise.shape=}'
    )
  means = np.concatenate([heights[:1], (heights[:-1] + heights[1:]) / 2])
  variances = np.concatenate(
    [noise[:1] ** 2, (noise[:-1] ** 2 + noise[1:] ** 2) / 4]
  )
  for k in range(1, len(means)):
    best = k - 1 - int(np.argmax(means[:k][::-1]))  # of equal ones the last
    allowed = _ERRORS * math.sqrt(variances[best] + variances[k])
    if means[best] - means[k] > max(margin, allowed):
      return k
  return -1


def critical_rung(rates: npt.ArrayLike, collapsed: npt.ArrayLike) -> Critical:
  """How far up its ladder a seed goes before it first collapses.

  Args:
    rates: [R] ascending, R at least 2.
    collapsed: [R] bool, of the seed's runs.
  """
  logs = _log_rates(rates)
  falls = np.flatnonzero(np.asarray(collapsed, bool))
  if not falls.size:
    return Critical(float(logs[-1]), False, True)
  if falls[0] == 0:
    return Critical(float(2 * logs[0] - logs[1]), True, False)
  return Critical(float(logs[falls[0] - 1]), False, False)


def half_collapse(
  rates: npt.ArrayLike, collapsed: npt.ArrayLike, alpha: float = 0.05
) -> statistics.Interval:
  """The rate at which half of the seeds collapse, with its interval.

  A seed's threshold lies between its critical rung and the next one; halfway in
  the log is taken for it in the median over seeds. The interval is that of the
  sign test, which holds whatever their distribution: see "Practical
  Nonparametric Statistics" by Conover (1999), 3.2. Its ends are rungs, the one
  below a seed's threshold and the one above another's, so that it holds the
  median no less often for what lies between rungs.

  Args:
    rates: [R] ascending, R at least 2.
    collapsed: [n, R] bool, seed by seed.
    alpha: error rate, in (0, 1).

  Returns:
    In units of the rates; 0 or inf where the ladder is too short to tell. NaN
    where half of the seeds lie below it and half above, and without seeds, with
    ends 0 and inf.
  """
  logs, table = _log_rates(rates), np.asarray(collapsed, bool)
  n = len(table)
  if not n:
    return statistics.Interval(math.nan, 0.0, math.inf, 0)
  edges = np.concatenate([[-math.inf], logs, [math.inf]])
  first = np.sort(np.where(table.any(axis=1), table.argmax(axis=1), len(logs)))
  below, above = edges[first], edges[first + 1]
  ordered = (below + above) / 2
  # The largest k with P(Binomial(n, 1/2) < k) at most alpha / 2.
  k = int(stats.binom.ppf(alpha / 2, n, 0.5))
  low, high = (below[k - 1], above[n - k]) if k else (-math.inf, math.inf)
  middle = float(ordered[(n - 1) // 2]), float(ordered[n // 2])
  center = middle[0] if middle[0] == middle[1] else sum(middle) / 2
  return statistics.Interval(
    2.0**center, 2.0 ** float(low), 2.0 ** float(high), n
  )


def _log_rates(rates):
  logs = np.log2(np.asarray(rates, float))
  if logs.ndim != 1 or len(logs) < 2 or not np.all(np.diff(logs) > 0):
    raise ValueError(f'rates must be two or more, ascending: {rates=}')
  return logs
