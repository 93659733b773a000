"""What a report lists: one line for each value of a run.

A new metric needs the kernel that computes it, a line here where it is to be
reported, and its bounds where they are not those of a share.
"""

from typing import NamedTuple

import numpy as np
import pandas

from hmpo_jax.training import update


class Measure(NamedTuple):
  """One number of a run, and how it is shown."""

  section: str  # of the report
  key: str  # of the records, or a column that outcomes.py makes
  reduce: str  # of REDUCTIONS over the steps of a run; '' for outcomes
  label: str
  form: str  # format of the number; % multiplies by 100

  @property
  def column(self) -> str:
    """Name in the tables of runs."""
    return f'{self.key}:{self.reduce}' if self.reduce else self.key


TAIL = 0.1  # last share of training whose mean is `tail`


def _third(number):
  return lambda steps, values, horizon: _mean(
    values[
      (steps > (number - 1) * horizon / 3) & (steps <= number * horizon / 3)
    ]
  )


def _mean(values):
  return float(np.mean(values)) if len(values) else np.nan


# From steps [m], values [m] and the horizon in steps to a number, NaN where the
# run hasn't come as far; m is at least 1.
REDUCTIONS = {
  'mean': lambda steps, values, horizon: _mean(values),
  'max': lambda steps, values, horizon: float(np.max(values)),
  'min': lambda steps, values, horizon: float(np.min(values)),
  'sum': lambda steps, values, horizon: float(np.sum(values)),
  'first': lambda steps, values, horizon: float(values[0]),
  'last': lambda steps, values, horizon: float(values[-1]),
  'tail': lambda steps, values, horizon: _mean(
    values[steps > steps[-1] - TAIL * horizon]
  ),
  'third_1': _third(1),
  'third_2': _third(2),
  'third_3': _third(3),
}

# Bounds of what is no share, by how its key begins. No mean lies outside of
# them, and no interval of a mean says so.
_SHARE, _COSINE = (0.0, 1.0), (-1.0, 1.0)
_NOT_NEGATIVE, _ANY = (0.0, np.inf), (-np.inf, np.inf)
_BOUNDS = {
  'heldout_change': (-1.0, 1.0),
  'exact_change': (-1.0, 1.0),
  'advantage/reward_variance': _NOT_NEGATIVE,
  'advantage/effective_': _NOT_NEGATIVE,
  'ratio/': _NOT_NEGATIVE,
  'qk/max_logit': _ANY,
  'qk/entropy': _NOT_NEGATIVE,
  'qk/clip_drift_k3': _NOT_NEGATIVE,
  'nonfinite_values': _NOT_NEGATIVE,
  'skipped/': _NOT_NEGATIVE,
  'log_ratio/': _NOT_NEGATIVE,
  'mechanism/cosine': _COSINE,
  'mechanism/norm_ratio': _NOT_NEGATIVE,
  'mechanism/gradient_variance': _NOT_NEGATIVE,
  'mechanism/sigma': _NOT_NEGATIVE,
  'mechanism/shift_over_spread': _NOT_NEGATIVE,
  'mechanism/kurtosis': (-2.0, np.inf),
  'update/norm': _NOT_NEGATIVE,
  'update/cosine': _COSINE,
  'agm/convergence_rate': _SHARE,
  'agm/': _NOT_NEGATIVE,
  'mean/p': _ANY,
}
_COMPARED = 'mechanism/step'
# Either happens in a run or doesn't.
EVENTS = ('qk/exploded',)


def bounds(key: str) -> tuple[float, float]:
  """Least and largest value that a metric, or a column of a run, can have."""
  return next(
    (found for start, found in _BOUNDS.items() if key.startswith(start)), _SHARE
  )


# Which of them a run has only once it has ended.
OF_THE_END = ('last', 'tail')

LEARNING, ADVANTAGES, RATIOS = 'learning', 'advantages', 'ratios'
STABILITY, GRADIENTS, MEANS = 'stability', 'gradients', 'means'
CHANGES = 'changes'  # told in sentences

MEASURES = (
  Measure(LEARNING, 'heldout_first', '', 'held-out reward, step 0', '.3f'),
  Measure(LEARNING, 'heldout_last', '', 'held-out reward, end', '.3f'),
  Measure(LEARNING, 'exact_first', '', 'held-out exact match, step 0', '.1%'),
  Measure(LEARNING, 'exact_last', '', 'held-out exact match, end', '.1%'),
  Measure(LEARNING, 'area', '', 'area under held-out reward', '.3f'),
  Measure(LEARNING, 'reward/mean', 'mean', 'episode reward', '.3f'),
  Measure(LEARNING, 'reward/mean', 'tail', 'episode reward, last tenth', '.3f'),
  Measure(
    CHANGES, 'heldout_change', '', 'held-out reward, end - step 0', '.3f'
  ),
  Measure(
    CHANGES, 'exact_change', '', 'held-out exact match, end - step 0', '.1%'
  ),
  Measure(
    ADVANTAGES,
    'advantage/reward_variance',
    'mean',
    'variance in a group before scaling',
    '.4f',
  ),
  Measure(
    ADVANTAGES,
    'advantage/effective_variance',
    'mean',
    'variance of A M_p',
    '.3f',
  ),
  Measure(
    ADVANTAGES,
    'advantage/effective_group_sum',
    'mean',
    'group sum of A M_p',
    '.3f',
  ),
  Measure(
    ADVANTAGES,
    'advantage/zero_variance_frac',
    'mean',
    'groups of equal rewards',
    '.1%',
  ),
  Measure(RATIOS, 'ratio/mean', 'mean', 'mean ratio', '.4f'),
  Measure(RATIOS, 'ratio/std', 'mean', 'its deviation', '.4f'),
  Measure(RATIOS, 'clip/low_frac', 'third_1', 'clipped low, 1st third', '.1%'),
  Measure(RATIOS, 'clip/low_frac', 'third_2', 'low, 2nd', '.1%'),
  Measure(RATIOS, 'clip/low_frac', 'third_3', 'low, 3rd', '.1%'),
  Measure(
    RATIOS, 'clip/high_frac', 'third_1', 'clipped high, 1st third', '.1%'
  ),
  Measure(RATIOS, 'clip/high_frac', 'third_2', 'high, 2nd', '.1%'),
  Measure(RATIOS, 'clip/high_frac', 'third_3', 'high, 3rd', '.1%'),
  Measure(RATIOS, 'loss/live_frac', 'mean', 'rows with a gradient', '.1%'),
  Measure(STABILITY, 'qk/max_logit', 'max', 'largest attention logit', '.1f'),
  Measure(STABILITY, 'qk/entropy', 'mean', 'attention entropy, nats', '.3f'),
  Measure(
    STABILITY,
    'qk/entropy_min',
    'min',
    'attention entropy of the sharpest head, least of an update, nats',
    '.3f',
  ),
  Measure(
    STABILITY,
    'qk/over_monitor_tau_frac',
    'mean',
    'updates with a logit above monitor_tau',
    '.1%',
  ),
  Measure(STABILITY, 'qk/exploded', 'max', 'runs that exploded', '.0%'),
  Measure(
    STABILITY, 'qk/clipped_frac', 'mean', 'updates that QK-clip changed', '.1%'
  ),
  Measure(
    STABILITY,
    'qk/clip_drift_k3',
    'mean',
    'KL that the clip caused, nats per token',
    '.2g',
  ),
  Measure(STABILITY, 'nonfinite_values', 'sum', 'values not finite', '.1f'),
  *(
    Measure(STABILITY, f'skipped/{cause}', 'sum', f'skipped: {cause}', '.1f')
    for cause in update.SKIP_CAUSES
  ),
  Measure(
    GRADIENTS,
    'log_ratio/last_update_sigma',
    'mean',
    'sigma, last update, nats',
    '.3f',
  ),
  Measure(
    GRADIENTS,
    'mechanism/cosine_unclipped',
    'mean',
    'cosine, p = 0 and -1, no clip',
    '.3f',
  ),
  Measure(
    GRADIENTS,
    'mechanism/cosine_unclipped_p1_p0',
    'mean',
    'p = 1 and 0, no clip',
    '.3f',
  ),
  Measure(
    GRADIENTS,
    'mechanism/cosine_unclipped_p1_pm1',
    'mean',
    'p = 1 and -1, no clip',
    '.3f',
  ),
  Measure(
    GRADIENTS, 'mechanism/cosine', 'mean', 'p = 0 and -1, clipped', '.3f'
  ),
  Measure(
    GRADIENTS,
    'mechanism/cosine_current_p0',
    'mean',
    'its own loss and p = 0, clipped',
    '.3f',
  ),
  Measure(
    GRADIENTS,
    'mechanism/norm_ratio',
    'mean',
    'length, p = -1 over p = 0',
    '.3f',
  ),
  Measure(
    GRADIENTS,
    'mechanism/mask_disagreement_p0_pm1',
    'mean',
    'clip differs, p = 0 and -1',
    '.1%',
  ),
  Measure(
    GRADIENTS,
    'mechanism/mask_disagreement_p1_p0',
    'mean',
    'clip differs, p = 1 and 0',
    '.1%',
  ),
  Measure(
    GRADIENTS,
    'mechanism/gradient_variance_unclipped_p1',
    'mean',
    'variance over rows, p = 1, no clip',
    '.3g',
  ),
  Measure(
    GRADIENTS,
    'mechanism/gradient_variance_unclipped_p0',
    'mean',
    'p = 0',
    '.3g',
  ),
  Measure(
    GRADIENTS,
    'mechanism/gradient_variance_unclipped_pm1',
    'mean',
    'p = -1',
    '.3g',
  ),
  Measure(
    GRADIENTS,
    'mechanism/gradient_variance_current',
    'mean',
    'its own loss, clipped',
    '.3g',
  ),
  Measure(
    GRADIENTS, 'mechanism/sigma_sqrt_n', 'mean', 'sigma sqrt(n), nats', '.3f'
  ),
  Measure(
    GRADIENTS,
    'mechanism/shift_over_spread',
    'mean',
    'mask shift over spread',
    '.3f',
  ),
  Measure(GRADIENTS, 'mechanism/kurtosis', 'mean', 'excess kurtosis', '.2f'),
  Measure(GRADIENTS, 'update/norm', 'mean', 'length of the update', '.4f'),
  Measure(
    GRADIENTS, 'update/cosine', 'mean', 'cosine, update and -gradient', '.3f'
  ),
  Measure(MEANS, 'agm/arithmetic', 'mean', 'A', '.4f'),
  Measure(MEANS, 'agm/harmonic', 'mean', 'H', '.4f'),
  Measure(MEANS, 'agm/gap', 'mean', 'gap A - H', '.4f'),
  Measure(MEANS, 'agm/log_gap', 'mean', 'log A - log H, nats', '.4f'),
  Measure(MEANS, 'log_ratio/row_variance', 'mean', 'var(x), nats²', '.4f'),
  Measure(MEANS, 'agm/convergence_rate', 'mean', 'A-H convergence rate', '.4f'),
  Measure(MEANS, 'mean/p', 'first', 'p, first step', '.2f'),
  Measure(MEANS, 'mean/p', 'last', 'p, last step', '.2f'),
)


def of_section(section: str) -> tuple[Measure, ...]:
  """The measures of one section, in their order."""
  return tuple(m for m in MEASURES if m.section == section)


def find(column: str) -> Measure:
  """The measure of a column; KeyError if none has it."""
  return {m.column: m for m in MEASURES}[column]


def defined(steps: pandas.DataFrame, key: str) -> tuple[int, int]:
  """In how many steps a metric was measured, and in how many it was due.

  Args:
    steps: rows of `records.Plan.steps`.
    key: of the metric.

  Returns:
    0 and 0 where it isn't recorded.
  """
  if key not in steps:
    return 0, 0
  known, due = steps[key].notna(), pandas.Series(True, steps.index)
  if key.startswith(('mechanism/', 'qk/clip_drift')) and _COMPARED in steps:
    due = steps[_COMPARED] == steps['step']
  elif not known.any():
    return 0, 0  # of another kind of run
  return int(known.sum()), int(due.sum())
