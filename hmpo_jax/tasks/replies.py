"""What users' functions return, as plain numbers and texts.

Read in the process of the function: to look at what it returned can raise, hang
or import as much as the function itself.
"""

from collections.abc import Mapping
import math

import numpy as np

# What is read of a controller's decisions; batch_size to say that it can't be
# changed.
_NAMES = ('learning_rate', 'epsilon', 'p', 'agm_iterations', 'batch_size')


class Refused(Exception):
  """The function returned something that is no answer; says what, in a line."""


def numbers(result):
  """What a reward function returned, as a number or nested lists of them.

  Raises:
    Refused: it holds something else than numbers.
  """
  try:
    return np.asarray(result, np.float32).tolist()
  except (TypeError, ValueError, OverflowError) as error:
    raise Refused(f'returned no numbers ({error})') from error


def decisions(result) -> tuple[dict[str, float | str], str]:
  """What a controller returned: decisions by name, and a reason to stop.

  Those under `hyperparams` count too, flat ones win. A decision that is no
  finite number is the text of what it is; '' is no reason.

  Raises:
    Refused: it is neither a dict of decisions nor None.
  """
  if result is None:
    return {}, ''
  if not isinstance(result, Mapping):
    raise Refused(
      f'returned {type(result).__name__}, must be a dict of decisions or None'
    )
  nested = result.get('hyperparams')
  flat = (dict(nested) if isinstance(nested, Mapping) else {}) | dict(result)
  settings = {name: _number(flat[name]) for name in _NAMES if name in flat}
  return settings, _stop(flat.get('early_stop'))


def _number(value):
  """A finite number, also of an array without axes; else its text."""
  if not isinstance(value, (str, bool, np.bool_)) and not np.ndim(value):
    try:
      if math.isfinite(number := float(value)):
        return number
    except (TypeError, ValueError, OverflowError):
      pass
  return repr(value)


def _stop(early_stop):
  """Why to stop; '' if it is not asked for."""
  reason = None
  if isinstance(early_stop, Mapping):
    early_stop, reason = early_stop.get('should_stop'), early_stop.get('reason')
  if isinstance(early_stop, str) or np.ndim(early_stop):
    raise Refused(f'returned early_stop = {early_stop!r}, must be a boolean')
  return str(reason or 'no reason given') if early_stop else ''
