"""Times to an event where some runs end before it: Kaplan and Meier."""

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from hmpo_jax.analysis import statistics


def time_to_target(
  steps: npt.ArrayLike,
  values: npt.ArrayLike,
  target: float,
  consecutive: int = 2,
  horizon: float | None = None,
) -> tuple[float, bool]:
  """When a curve reached the target and kept it.

  Args:
    steps: [m] of the evaluations, increasing; any unit.
    values: [m] there; NaN does not reach.
    target: value to reach.
    consecutive: successive evaluations that must all be at or above it.
    horizon: where a run is censored that failed, since it will never reach;
      None: at its last step, right for a run that goes on.

  Returns:
    Step of the first of those evaluations and true, or where the run is
    censored and false; without evaluations that is at 0 or the horizon.
  """
  at, heights = np.asarray(steps, np.float64), np.asarray(values, np.float64)
  if at.ndim != 1 or at.shape != heights.shape:
    raise ValueError(
      f'steps and values must be of shape [m]: {at.shape=} {heights.shape=}'
    )
  if not np.all(np.diff(at) > 0):
    raise ValueError(f'steps must increase: {steps=}')
  if consecutive < 1:
    raise ValueError(f'consecutive must be positive: {consecutive=}')
  if len(at) >= consecutive:
    windows = np.lib.stride_tricks.sliding_window_view(heights, consecutive)
    hits = np.flatnonzero(np.all(windows >= target, axis=1))
    if hits.size:
      return float(at[hits[0]]), True
  if horizon is not None:
    return float(horizon), False
  return float(at[-1]) if at.size else 0.0, False


def kaplan_meier(
  times: npt.ArrayLike, reached: npt.ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
  """Share of runs that have not reached the target, a step function of time.

  See "Nonparametric Estimation from Incomplete Observations" by Kaplan and
  Meier (1958). A run that is censored at t counts as at risk at t.

  Args:
    times: [n] not negative.
    reached: [n] bool, false where the run was censored at that time.

  Returns:
    [k + 1] 0 and the k distinct times, and [k + 1] the share from that time on,
    up to the next: 1 first.
  """
  knots, events, at_risk = _risk_table(*_checked(times, reached))
  return (
    np.concatenate([[0.0], knots]),
    np.concatenate([[1.0], np.cumprod(1 - events / at_risk)]),
  )


def restricted_mean(
  times: npt.ArrayLike,
  reached: npt.ArrayLike,
  horizon: float,
  alpha: float = 0.05,
) -> statistics.Interval:
  """Mean of min(time, horizon), the area under the curve of `kaplan_meier`.

  The variance is Greenwood's, sum_i A_i^2 d_i / (r_i (r_i - d_i)) for the d_i
  of r_i runs at risk that reach the target at t_i and the area A_i from there
  to the horizon, times n / (n - 1); with Student's t this is the interval of
  `statistics.mean_interval` where none is censored before the horizon. Beyond
  the last time the curve goes on at its height: an upper bound if a run is
  censored there.

  Args:
    times: [n] not negative.
    reached: [n] bool, false where the run was censored at that time.
    horizon: positive, in units of the times.
    alpha: error rate, in (0, 1).

  Returns:
    The interval, within 0 and the horizon, which are its ends for n < 2. A
    point if all are equal, so also if no run reached: report beside it how many
    did.
  """
  if not horizon > 0:
    raise ValueError(f'horizon must be positive: {horizon=}')
  if not 0 < alpha < 1:
    raise ValueError(f'alpha must be between 0 and 1: {alpha=}')
  ends, events = _checked(times, reached)
  cut, before = np.minimum(ends, horizon), events & (ends <= horizon)
  n = cut.size
  if not n:
    return statistics.Interval(math.nan, 0.0, float(horizon), 0)
  knots, share = kaplan_meier(cut, before)
  areas = share * np.diff(knots, append=horizon)
  mean = float(np.sum(areas))
  if n < 2:
    return statistics.Interval(mean, 0.0, float(horizon), n)
  half = float(stats.t.isf(alpha / 2, n - 1)) * math.sqrt(
    _greenwood(cut, before, areas) * n / (n - 1)
  )
  return statistics.Interval(
    mean, max(mean - half, 0.0), min(mean + half, float(horizon)), n
  )


def _greenwood(times, reached, areas):
  """Variance of the sum of the areas."""
  _, events, at_risk = _risk_table(times, reached)
  areas = np.cumsum(areas[::-1])[::-1][1:]
  left = at_risk - events
  # The area is 0 after all have reached.
  left = np.where(left, left, 1)
  return float(np.sum(areas**2 * events / (at_risk * left)))


def _checked(times, reached):
  """[n] float64 and [n] bool."""
  ends, events = np.asarray(times, np.float64), np.asarray(reached, bool)
  if ends.ndim != 1 or ends.shape != events.shape:
    raise ValueError(
      f'times and reached must be of shape [n]: {ends.shape=} {events.shape=}'
    )
  if not np.all(ends >= 0):
    raise ValueError(f'times must not be negative: {times=}')
  return ends, events


def _risk_table(ends, events):
  """[k] distinct times, runs that reach there, runs at risk there."""
  distinct, inverse, counts = np.unique(
    ends, return_inverse=True, return_counts=True
  )
  reaching = np.bincount(inverse, events, len(distinct))
  return distinct, reaching, np.cumsum(counts[::-1])[::-1]
