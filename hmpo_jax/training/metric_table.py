"""Every metric, by name: the rows of metric_rows and what is asked of them.

A step's update, TensorBoard, the reading of records, reports and
docs/telemetry.md all read these rows, so that a metric is added by the kernel
that computes it and by its row. Titles of charts stand in run/tensorboard.py,
labels of what a whole run came to in analysis/measures.py.
"""

import fnmatch
import functools

from hmpo_jax.training.metric_rows import fields
from hmpo_jax.training.metric_rows import ratios
from hmpo_jax.training.metric_rows import rollouts
from hmpo_jax.training.metric_rows import row as row_lib
from hmpo_jax.training.metric_rows import updates

_CONTROLLERS, _BOARD = 'Fields for controllers', 'In TensorBoard alone'
# By the part of the documentation that shows them. Where a name has two rows,
# the first says all of it, and the second is for its part only.
ROWS = {
  'Reward and evaluation': rollouts.REWARDS,
  'Advantages': rollouts.ADVANTAGES,
  'Ratios and means': ratios.RATIOS,
  'Orders, clips and the loss': ratios.LOSS,
  'Gradients of several means': updates.GRADIENTS,
  'Rollouts': rollouts.ROLLOUTS,
  'Attention logits and the optimizer': updates.OPTIMIZER,
  'Times, in timing.jsonl': rollouts.TIMES,
  _CONTROLLERS: fields.CONTROLLERS,
  _BOARD: fields.BOARD,
}
# Parts in the order in which docs/telemetry.md shows them.
DOCUMENTED = (
  _CONTROLLERS,
  *(part for part in ROWS if part not in (_CONTROLLERS, _BOARD)),
)
_FOR_EACH = ('reduce', 'group', 'board', 'stamp', 'needs', 'bounds')


@functools.cache
def find(name: str) -> row_lib.Row:
  """The row of a metric, with its own words alone and '' for none.

  Args:
    name: of the metric.

  Returns:
    A row without names if the table has none.
  """
  rows = (row for part in ROWS.values() for row in part)
  return _match(name, rows) or row_lib.Row('', '', '')


def bounds(name: str) -> tuple[float, float]:
  """Least and largest value of a metric."""
  return row_lib.BOUNDS[find(name).bounds or 'any']


def describe(name: str) -> str:
  """Meaning and unit of a metric for TensorBoard; '' if no row has its name."""
  row = _match(name, ROWS[_BOARD]) or find(name)
  if not row.meaning:
    return ''
  meaning = f'{row.meaning[0].upper()}{row.meaning[1:]}.'
  if row.unit is None:
    return meaning
  return f'{meaning} Unit: {row.unit or "none"}.'


def markdown(part: str) -> str:
  """The rows of a part as a table of Markdown."""
  head = ['metric', 'unit', 'meaning']
  if part == _CONTROLLERS:
    head = ['field', 'type, unit', 'meaning', 'made from']
  lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
  for row in ROWS[part]:
    names = ', '.join(f'`{name}`' for name in row.names.split())
    cells = (names, row.unit or '', row.meaning, row.source)[: len(head)]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def _match(name, rows):
  """The first of some rows that has a name, None if none has."""
  for row in rows:
    for index, known in enumerate(row.names.split()):
      if fnmatch.fnmatchcase(name, known):
        return _alone(row, index)
  return None


def _alone(row, index):
  """A row with the words of one of its names."""
  words = {field: _word(getattr(row, field), index) for field in _FOR_EACH}
  units = (row.unit or '').split(', ')
  unit = units[index] if len(units) == len(row.names.split()) else row.unit
  default = row_lib.BOUNDS_OF_UNITS.get(unit, 'any')
  return row._replace(**words | {'bounds': words['bounds'] or default})


def _word(text, index):
  words = text.split()
  word = words[index] if len(words) > 1 else text
  return '' if word == '-' else word
