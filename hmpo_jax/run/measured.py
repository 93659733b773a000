"""Which values of a record its step measured.

Every record has a finite number under every name, for readers that take no
gaps. Where a step has nothing to measure, that number is an old one, or 0; as
such it belongs in no mean.
"""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
import math

from hmpo_jax.training import mechanism
from hmpo_jax.training import metric_table
from hmpo_jax.training import update

_OF_UPDATES = 'qk/max_logit_per_update'  # a list with a value of each


def of(record: Mapping, nonfinite: Collection[str] = ()) -> dict:
  """A record with NaN for every number that its step did not measure.

  What only an update with a signal has, such as the cosine of the update and
  the negative gradient, is the mean over those updates; in the record it is the
  mean over all sound ones, and 0 in those that had no signal.

  Args:
    record: of a step, as metrics.jsonl holds it.
    nonfinite: names whose values were not finite; see faults.jsonl.

  Returns:
    The same names; lists as they are.
  """
  found = dict(record)
  sound, signals = _num_updates(record)
  for name in _needing('signal', record) if signals else ():
    found[name] = record[name] * sound / signals
  for name in missing(record, nonfinite):
    if not isinstance(found[name], list):
      found[name] = math.nan
  return found


def at(name: str, values: Mapping) -> int | None:
  """The step that measured a value; None if it has none of its own."""
  return values.get(metric_table.find(name).stamp)


def missing(record: Mapping, nonfinite: Collection[str] = ()) -> set[str]:
  """Names of a record under which its step measured nothing.

  These are values that were not finite, of which the record repeats the last
  finite one; those of an earlier evaluation or comparison of gradients; cosines
  and ratios of gradients of which one is 0; what only updates with a signal
  have, in a step without one; and all that is of trained tokens, in a step
  without any.

  The arguments are those of `of`.
  """
  step = record['step']
  found = {name for name in nonfinite if name in record}
  found |= {name for name in record if at(name, record) not in (None, step)}
  found |= set(mechanism.undefined(record)) | set(_without_signal(record))
  if record.get('ratio/max') == 0:  # of a trained row it is positive
    found |= set(_needing('rows', record))
  return found


def _without_signal(record) -> Iterator[str]:
  sound, signals = _num_updates(record)
  if sound and not signals:
    yield from _needing('signal', record)
  # Updates of length 0 point nowhere.
  if record.get('update/norm') == 0 and 'update/cosine' in record:
    yield 'update/cosine'


def _needing(what, record) -> list[str]:
  """Names of a record that are 0 where there is no such thing."""
  needs = lambda name: metric_table.find(name).needs.split('+')
  return [name for name in record if what in needs(name)]


def _num_updates(record):
  """Updates of a step without a numerical fault, and those with a signal."""
  if _OF_UPDATES not in record:
    return 0, 0
  skipped = lambda cause: int(record[f'skipped/{cause}'])
  sound = len(record[_OF_UPDATES]) - sum(map(skipped, update.NUMERICAL_CAUSES))
  return sound, sound - skipped('no_signal')
