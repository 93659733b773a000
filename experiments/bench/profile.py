"""Where the time of compiled programs goes, with and without a viewer."""

from collections.abc import Iterator
import contextlib
import gzip
import json
import pathlib
from typing import NamedTuple

import jax

_RUNS = 'plugins/profile'  # where TensorBoard looks
_TRACES = '*.trace.json.gz'
_OPERATIONS = 'XLA Ops'  # name of a thread


class Operation(NamedTuple):
  """What XLA made of a part of a program, such as a fusion, by its name."""

  name: str  # program/operation, or operation where the program isn't known
  calls: int
  milliseconds: float  # of all calls, without the operations within


@contextlib.contextmanager
def trace(folder: str | pathlib.Path) -> Iterator[None]:
  """Records what the devices do while the context lasts.

  Each call makes a folder of its own, plugins/profile/TIME, with xplane.pb for
  TensorBoard's profile plugin (`tensorboard --logdir=FOLDER`) and trace.json.gz
  for <https://ui.perfetto.dev>. Wait for the results within the context, keep
  to a few steps, as the JSON stops at a million events, and compile before.

  Args:
    folder: made if missing.
  """
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # its events would crowd the others out
  with jax.profiler.trace(folder, profiler_options=options):
    yield


def slowest(folder: str | pathlib.Path, num: int = 20) -> list[Operation]:
  """The operations of the newest trace that took longest, in falling order.

  Times of several devices, or of threads that ran at once, add up to more than
  the clock's. An operation that waits for others on another thread, as a loop
  on CPU may, is counted with the wait.

  Args:
    folder: that `trace` was given.
    num: how many at most.

  Returns:
    Operations; [] if nothing ran while the trace was made.

  Raises:
    FileNotFoundError: the folder holds no trace.
  """
  runs = sorted(pathlib.Path(folder, _RUNS).glob(f'*/{_TRACES}'))
  if not runs:
    raise FileNotFoundError(f'{folder} holds no {_RUNS}/*/{_TRACES}')
  totals: dict[str, Operation] = {}
  for file in runs[-1].parent.glob(_TRACES):  # one for each host
    for name, milliseconds in _own_times(_read(file)):
      _, calls, total = totals.get(name, (name, 0, 0.0))
      totals[name] = Operation(name, calls + 1, total + milliseconds)
  slowest_first = lambda operation: (-operation.milliseconds, operation.name)
  return sorted(totals.values(), key=slowest_first)[:num]


def _read(file):
  """The events of operations in a trace, by thread."""
  with gzip.open(file, 'rt', encoding='utf-8') as text:
    events = json.load(text)['traceEvents']
  names = {
    (event['name'], event['pid'], event.get('tid')): event['args']['name']
    for event in events
    if event.get('name') in ('process_name', 'thread_name')
  }
  threads: dict[tuple, list] = {}
  for event in _operations(events, names):
    threads.setdefault((event['pid'], event['tid']), []).append(event)
  return threads.values()


def _operations(events, names):
  """Those of a device's thread of operations, its kernels, or the host's."""
  spans = [event for event in events if event.get('ph') == 'X']
  of_thread = lambda event: names.get(
    ('thread_name', event['pid'], event['tid'])
  )
  of_process = lambda event: names.get(('process_name', event['pid'], None), '')
  on_host = [event for event in spans if 'hlo_op' in event.get('args', {})]
  kernels = [
    event for event in on_host if of_process(event).startswith('/device:')
  ]
  return (
    [event for event in spans if of_thread(event) == _OPERATIONS]
    or kernels
    or on_host
  )


def _own_times(threads):
  """(name, milliseconds without the operations within) of each event."""
  for events in threads:
    events.sort(key=lambda event: (event['ts'], -event['dur']))
    own = [event['dur'] for event in events]
    within: list[int] = []  # places of events that the next may lie within
    for i, event in enumerate(events):
      while within and _end(events[within[-1]]) <= event['ts']:
        within.pop()
      if within:
        own[within[-1]] -= event['dur']
      within.append(i)
    for event, microseconds in zip(events, own):
      yield _name(event), microseconds / 1e3


def _end(event):
  return event['ts'] + event['dur']


def _name(event):
  about = event.get('args', {})
  operation = about.get('hlo_op', event['name'])
  program = about.get('hlo_module')
  return f'{program}/{operation}' if program else operation
