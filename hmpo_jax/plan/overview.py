"""What a person sees of a plan while its runs go on."""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
import threading
from typing import NamedTuple

from hmpo_jax.run import progress as progress_lib

DONE, FAILED, REFUSED = 'done', 'failed', 'refused'
_GOING, _COMPILING, _WAITING = 'going', 'compiling', 'waiting'
_STATES = (DONE, FAILED, REFUSED, _GOING, _COMPILING, _WAITING)
_UNDER_WAY = (_GOING, _COMPILING)


class Way(NamedTuple):
  """How far a run is."""

  step: int  # finished
  num_steps: int
  state: str = _WAITING


def count(num_runs: int) -> str:
  """Such as 12 runs."""
  return f'{num_runs} run{"" if num_runs == 1 else "s"}'


class Overview:
  """How far runs are; takes the reports of several threads."""

  def __init__(self, progress: progress_lib.Progress, ways: Mapping[str, Way]):
    """Shows nothing yet.

    Args:
      progress: of the steps of all runs.
      ways: of each run, by name.
    """
    self._progress = progress
    self._ways = dict(ways)
    self._lock = threading.Lock()

  def started(self, names: Iterable[str]) -> None:
    """A worker begins with runs: it compiles their program."""
    with self._lock:
      for name in names:
        self._ways[name] = self._ways[name]._replace(state=_COMPILING)
      self._progress.status(f'runs {self._text()}')

  def step(self, names: Iterable[str], step: int) -> None:
    """Those of the runs that have not ended have finished a step."""
    with self._lock:
      for name in names:
        if self._ways[name].state in _UNDER_WAY:
          self._ways[name] = self._ways[name]._replace(step=step, state=_GOING)
      total = sum(way.step for way in self._ways.values())
      self._progress.update(total, {'runs': self._text()})

  def ended(self, name: str, state: str) -> None:
    """A run is DONE, FAILED or REFUSED: no step of it is left."""
    with self._lock:
      way = self._ways[name]
      self._ways[name] = way._replace(step=way.num_steps, state=state)
      self._progress.status(f'runs {self._text()}')

  def before_end(self) -> str:
    """What the workers finish first once they are asked to end."""
    with self._lock:
      states = [way.state for way in self._ways.values()]
    compiling = states.count(_COMPILING)
    under_way = count(compiling + states.count(_GOING))
    text = f'a step of {under_way}, to be saved'
    if compiling:
      text += f'; {compiling} of them compile first, which takes up to minutes'
    return text

  def note(self, text: str) -> None:
    """A line for the user."""
    with self._lock:
      self._progress.note(text)

  def _text(self):
    """Numbers of runs by state, and the steps of those that go."""
    counts = collections.Counter(way.state for way in self._ways.values())
    steps = {way.step for way in self._ways.values() if way.state == _GOING}
    ends = (
      ' to '.join(map(str, sorted({min(steps), max(steps)}))) if steps else ''
    )
    return ', '.join(
      f'{counts[state]} {f"at step {ends}" if state == _GOING else state}'
      for state in _STATES
      if counts[state]
    )
