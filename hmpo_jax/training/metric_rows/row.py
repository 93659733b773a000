"""What a metric is: one row says everything."""

from collections.abc import Mapping
import types
from typing import NamedTuple


class Row(NamedTuple):
  """Metrics that one sentence describes.

  A field after the meaning is a word for all names, or one for each, parted by
  spaces; '-' is none.
  """

  names: str  # parted by spaces; a name may be a pattern with *
  # '' for a number without one; one for each name, or for all; None where the
  # meaning says it.
  unit: str | None
  meaning: str
  # Over the updates of a step: min | max | mean | sum of the sound ones, which
  # no numerical cause skipped; mean_of_all | sum_of_all.
  reduce: str = 'mean'
  # reward | stability | ratios | advantage | learning | agm | other
  group: str = 'other'
  # What TensorBoard draws: scalar, of a list its largest | histogram of a list
  # | quiet, a scalar from the first value on that is not 0 | - where others
  # show the same.
  board: str = 'scalar'
  # Metric that holds the step of the last measurement, where not every step has
  # one.
  stamp: str = ''
  # rows: 0 in a step without a trained row | signal: 0 in an update without a
  # row that passes a gradient | rows+signal
  needs: str = ''
  bounds: str = ''  # of BOUNDS, if not those of the unit
  source: str = ''  # what a field for controllers is made from
  section: str = ''  # of reports, see measures.SECTIONS
  # What reports show: from name:reduction, of measures.REDUCTIONS over the
  # steps of a run, to the label and the format of the number, whose % multiplies
  # by 100. A third says which it follows, if not the one before it in the table.
  report: Mapping[str, tuple[str, ...]] = types.MappingProxyType({})


# Least and largest value.
BOUNDS = {
  'share': (0.0, 1.0),
  'cosine': (-1.0, 1.0),
  'not_negative': (0.0, float('inf')),
  'kurtosis': (-2.0, float('inf')),
  'any': (-float('inf'), float('inf')),
}
# Others may have any value.
BOUNDS_OF_UNITS = {
  '0 or 1': 'share',
  'count': 'not_negative',
  'factor': 'not_negative',
  'gradient squared': 'not_negative',
  'integer': 'not_negative',
  'nats squared': 'not_negative',
  'probability': 'share',
  'ratio': 'not_negative',
  'reward': 'share',
  'reward squared': 'not_negative',
  'seconds': 'not_negative',
  'share': 'share',
  'steps': 'not_negative',
  'tokens': 'not_negative',
  'tokens per second': 'not_negative',
}
