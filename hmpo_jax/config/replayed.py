"""The orders that another run's updates used, for a yoked control."""

import json
import pathlib

import numpy as np

from hmpo_jax import config as config_lib
from hmpo_jax.config import lines as lines_lib

# The order after the last update of a step, before the step's own decision
# moves it: the one that all its updates used, if they shared one.
_ORDER = 'exponent/p'
# Mean over rows and updates of the orders that were used: rounded.
_MEAN = 'mean/p'
_ROUNDING = 1e-5  # relative to 1 or |p|
_FLOAT32_MAX = 3.4e38


def load(config) -> np.ndarray | None:
  """The orders that a configuration replays, from its exponent.path.

  The file is the metrics.jsonl of a finished run whose updates of one step
  share an order, that is of any kind but learnable and matched.

  Args:
    config: validated; exponent.path is read for kind 'replayed' alone.

  Returns:
    [S] float32, the order of each recorded step to the bit; None for other
    kinds.

  Raises:
    ConfigError: a file that can't be read, is empty, or whose records don't
      follow one another or hold no finite order that a whole step used.
  """
  if config.exponent.kind != 'replayed':
    return None
  file = config.exponent.path
  orders = [
    _order(file, number, line) for number, line in enumerate(_lines(file), 1)
  ]
  return np.array(orders, np.float32)


def _lines(file):
  try:
    *lines, rest = lines_lib.read(pathlib.Path(file))
  except (OSError, ValueError) as error:
    raise _error(file, f'must be a readable text file ({error})') from error
  lines += [rest] if rest else []
  if not lines:
    raise _error(
      file,
      'is empty; it must hold the record of a step in every '
      'line, as the metrics.jsonl of a run',
    )
  return lines


def _order(file, number, line):
  """The order of one step, from its record."""
  try:
    record = json.loads(line)
    step, order, mean = record['step'], record[_ORDER], record[_MEAN]
    whole = not any(
      value for name, value in record.items() if name.startswith('skipped/')
    )
    order, gap = float(order), abs(float(order) - float(mean))
  except (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
  ) as error:
    raise _error(
      file,
      f'line {number} is no record of a step with "step", '
      f'"{_ORDER}" and "{_MEAN}" ({error!r})',
    ) from error
  if step != number:
    raise _error(
      file,
      f'line {number} is of step {step!r:.20}: the steps must be 1, 2, 3, ...',
    )
  if not abs(order) <= _FLOAT32_MAX:
    raise _error(
      file, f'line {number} holds the order {order}: must be finite in float32'
    )
  # Skipped updates may have used none, or leave an older mean in the record.
  if whole and not gap <= _ROUNDING * max(1, abs(order)):
    raise _error(
      file,
      f'line {number}: the updates of a step must share one '
      f'order, but their mean is {mean} and the last {order}, as '
      'with a learnable or matched order',
    )
  return order


def _error(file, text):
  return config_lib.ConfigError(f'config.exponent.path = {file!r}: {text}')
