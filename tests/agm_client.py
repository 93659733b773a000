"""A stand-in for the external AGM client: its arithmetic, and its names.

Written from the formulas, for tests: of what it answers only what a run can
act on is here.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib

import numpy as np

_SMOOTHING, _DWELL = 0.9, 5  # share of the last suggestion; steps
_LEAST_IMPROVEMENT = 1e-4


def install(folder: pathlib.Path) -> None:
  """Makes a package `agmlib` of this file in a folder."""
  package = folder / 'agmlib'
  package.mkdir()
  (package / '__init__.py').touch()
  text = pathlib.Path(__file__).read_text(encoding='utf-8')
  (package / 'agm.py').write_text(text, encoding='utf-8')


def speed(a: Sequence[float], h: Sequence[float]) -> float:
  """Share of the first gap that is gone at the last entry, 0.5 if unknown."""
  gaps = np.abs(np.subtract(a, h))
  if len(gaps) < 2 or gaps[0] <= 1e-8:
    return 0.5
  return float(np.clip((gaps[0] - gaps[-1]) / gaps[0], 0, 1))


def spread(a: Sequence[float], h: Sequence[float]) -> float:
  """Relative gap of the last entries."""
  if not a:
    return 0.0
  return abs(a[-1] - h[-1]) / (abs(a[-1]) + abs(h[-1]) + 1e-8)


def stability(a: Sequence[float], h: Sequence[float]) -> float:
  """From 0 to 1, by the variances of the last ten; 0.5 of fewer than five."""
  if len(a) < 5:
    return 0.5
  return float(1 / (1 + 100 * (np.var(a[-10:]) + np.var(h[-10:]))))


def rate(a: Sequence[float], h: Sequence[float]) -> float:
  """1 less the mean relative gap."""
  if not a:
    return 0.5
  gaps = np.abs(np.subtract(a, h)) / (np.abs(a) + np.abs(h) + 1e-8)
  return float(1 - np.mean(gaps))


def build_telemetry_from_hmpo_record(record: Mapping) -> dict:
  """What the client reads of a record."""
  return {
    'step': record['step'],
    'a': list(record['arithmetic_history']),
    'h': list(record['harmonic_history']),
    'performance': float(record['eval_reward']),
  }


class ControllerSuite:
  """Suggestions and a reason to stop, record by record."""

  def __init__(self, *, base_hyperparams: Mapping):
    self._base = base_hyperparams
    self._smooth: dict[str, float] = {}
    self._given: dict[str, float] = {}
    self._changed = -_DWELL
    self._rates: list[float] = []
    self._performance: list[float] = []

  def update(self, telemetry: Mapping) -> dict:
    """Takes a record of `build_telemetry_from_hmpo_record`."""
    a, h, step = telemetry['a'], telemetry['h'], telemetry['step']
    self._rates.append(rate(a, h))
    self._performance.append(telemetry['performance'])
    new = self._suggestions(a, h)
    last = self._smooth or new
    self._smooth = {
      name: _SMOOTHING * last[name] + (1 - _SMOOTHING) * value
      for name, value in new.items()
    }
    if step - self._changed >= _DWELL and self._may_change():
      self._given, self._changed = self._smooth, step
    reason = self._reason()
    return {
      'hyperparams': dict(self._given),
      'early_stop': {
        'should_stop': bool(reason),
        'reason': reason or 'continue_training',
      },
    }

  def _suggestions(self, a, h):
    fast, slow = speed(a, h) > 0.7, speed(a, h) < 0.3
    is_wide, is_narrow = spread(a, h) > 0.3, spread(a, h) < 0.05
    unstable, stable = stability(a, h) < 0.3, stability(a, h) > 0.8
    base = self._base
    pace = 1.3 if fast else 0.7 if slow else 0.6 if unstable else 1.0
    width = 1.4 if is_wide else 0.8 if is_narrow else 1.0
    size = 1.5 if stable and fast else 0.7 if unstable else 1.0
    return {
      'learning_rate': np.clip(base['learning_rate'] * pace, 1e-5, 5e-3),
      'epsilon': np.clip(base['epsilon'] * width, 0.01, 0.5),
      'batch_size': np.clip(base['batch_size'] * size, 64, 2048),
      'agm_iterations': 3.0 if fast else 10.0 if slow else 5.0,
    }

  def _may_change(self):
    """Whether the rate does not fall; the first suggestion is always given."""
    recent = self._rates[-10:]
    return not self._given or len(recent) < 3 or _slope(recent) > -0.05

  def _reason(self):
    rates, performance = self._rates, self._performance
    if (
      len(rates) >= 20
      and np.mean(rates[-20:]) > 0.99
      and np.var(rates[-20:]) < 1e-6
    ):
      return 'agm_full_convergence'
    if (
      len(rates) >= 40
      and np.mean(rates[-10:]) > 0.85
      and np.var(rates[-10:]) < 0.01
      and np.mean(performance[-10:]) > 0.8
      and abs(_slope(performance[-20:])) < _LEAST_IMPROVEMENT / 10
    ):
      return 'agm_optimal_point_reached'
    return ''


def _slope(values):
  return np.polyfit(np.arange(len(values)), values, 1)[0]
