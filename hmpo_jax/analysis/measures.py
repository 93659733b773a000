"""What a report lists: one line for each value of a run.

Metrics are listed by their rows in training/metric_table.py; what is made of a
whole run stands here.
"""

from collections.abc import Iterator
import itertools
from typing import NamedTuple

import numpy as np
import pandas

from hmpo_jax.training import metric_table
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

# Which of them a run has only once it has ended.
OF_THE_END = ('last', 'tail')

LEARNING, ADVANTAGES, RATIOS = 'learning', 'advantages', 'ratios'
STABILITY, GRADIENTS, MEANS = 'stability', 'gradients', 'means'
CHANGES = 'changes'  # told in sentences
SECTIONS = (
  LEARNING,
  CHANGES,
  ADVANTAGES,
  RATIOS,
  STABILITY,
  GRADIENTS,
  MEANS,
)

_OUTCOMES = (
  Measure(LEARNING, 'heldout_first', '', 'held-out reward, step 0', '.3f'),
  Measure(LEARNING, 'heldout_last', '', 'held-out reward, end', '.3f'),
  Measure(LEARNING, 'exact_first', '', 'held-out exact match, step 0', '.1%'),
  Measure(LEARNING, 'exact_last', '', 'held-out exact match, end', '.1%'),
  Measure(LEARNING, 'area', '', 'area under held-out reward', '.3f'),
  Measure(
    CHANGES, 'heldout_change', '', 'held-out reward, end - step 0', '.3f'
  ),
  Measure(
    CHANGES, 'exact_change', '', 'held-out exact match, end - step 0', '.1%'
  ),
)


def _reported() -> Iterator[tuple[Measure, str]]:
  """What is reported of each metric, and the column that it follows, if any."""
  for row in itertools.chain(*metric_table.ROWS.values()):
    for column, (label, form, *after) in row.report.items():
      key, reduce = column.split(':')
      yield Measure(row.section, key, reduce, label, form), ''.join(after)


def _of_causes(measure) -> tuple[Measure, ...]:
  """One for each cause to skip an update, if its key leaves that open."""
  if '*' not in measure.key:
    return (measure,)
  named = lambda cause: measure._replace(
    key=measure.key.replace('*', cause),
    label=measure.label.replace('*', cause),
  )
  return tuple(map(named, update.SKIP_CAUSES))


def _all_measures() -> tuple[Measure, ...]:
  """Outcomes, then metrics as the table has them, section by section."""
  found = [*_OUTCOMES, *(m for m, after in _reported() if not after)]
  for measure, after in _reported():
    if after:
      place = [m.column for m in found].index(after)
      found.insert(place + 1, measure)
  found.sort(key=lambda m: SECTIONS.index(m.section))
  return tuple(itertools.chain(*map(_of_causes, found)))


MEASURES = _all_measures()


def bounds(key: str) -> tuple[float, float]:
  """Least and largest value that a metric, or a column of a run, can have.

  No mean lies outside of them, and no interval of a mean says so.
  """
  if metric_table.find(key).names:
    return metric_table.bounds(key)
  return (-1.0, 1.0) if key.endswith('_change') else (0.0, 1.0)


def is_event(key: str) -> bool:
  """Whether it either happens in a run or doesn't."""
  return metric_table.find(key).unit == '0 or 1'


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
  stamp = metric_table.find(key).stamp
  if stamp in steps:
    due = steps[stamp] == steps['step']
  elif not known.any():
    return 0, 0  # of another kind of run
  return int(known.sum()), int(due.sum())
