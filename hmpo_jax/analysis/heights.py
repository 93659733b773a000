"""What the curve of one run comes to: its mean height and its falls."""

import math

import numpy as np
import numpy.typing as npt

from hmpo_jax.analysis import statistics


def max_drawdown(curve: npt.ArrayLike) -> float:
  """Largest fall of a [m] curve below what it had reached; NaN for m = 0."""
  heights = statistics.vector(curve)
  falls = np.maximum.accumulate(heights) - heights
  return float(np.max(falls)) if falls.size else math.nan


def area(steps: npt.ArrayLike, values: npt.ArrayLike, horizon: float) -> float:
  """Mean height from step 0 to the horizon of the lines between evaluations.

  Args:
    steps: [m] of the evaluations, increasing, not negative.
    values: [m] there.
    horizon: positive, in units of the steps; what lies beyond is cut off.

  Returns:
    The mean height: the first and the last value hold before and after the
    evaluations. NaN for m = 0.
  """
  times, heights = statistics.pair(steps, values)
  if not horizon > 0:
    raise ValueError(f'horizon must be positive: {horizon=}')
  if not np.all(np.diff(times) > 0) or not np.all(times >= 0):
    raise ValueError(f'steps must increase, from 0 or later: {steps=}')
  if not times.size:
    return math.nan
  inner = times[(times > 0) & (times < horizon)]
  knots = np.concatenate([[0.0], inner, [horizon]])
  return float(np.trapezoid(np.interp(knots, times, heights), knots) / horizon)


def scored_area(
  steps: np.ndarray,
  values: np.ndarray,
  horizon: float,
  end: float,
  failure_value: float,
) -> float:
  """`area` of the curve of a run that may have failed.

  The last value before the failure holds until it, failure_value from then on.

  Args:
    steps: [m] of the evaluations, increasing, not negative.
    values: [m] there.
    horizon: positive, in units of the steps; what lies beyond is cut off.
    end: step of the failure; the horizon without one.
    failure_value: height of a failed run.
  """
  if end >= horizon:
    return area(steps, values, horizon)
  before = steps < end
  if not before.any():
    return float(failure_value)
  healthy = area(steps[before], values[before], end)
  return (healthy * end + failure_value * (horizon - end)) / horizon
