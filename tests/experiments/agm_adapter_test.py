"""The external client's multiples, of base values of the run."""

import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import types
from unittest import mock

from absl.testing import absltest
import numpy as np

from tests import agm_client
from tests import small

_ROOT = pathlib.Path(__file__).parents[2]
_ADAPTER = _ROOT / 'experiments' / 'agm_adapter.py'
_RUN = _ROOT / 'results' / 'agm_telemetry' / 'calm' / 'harmonic' / 'seed-0'
_BASE = {
  'learning_rate': 1e-3,
  'epsilon': 0.1,
  'batch_size': 256,
  'agm_iterations': 5,
}


def _records():
  text = (_RUN / 'metrics.jsonl').read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


def _adapter(**overrides):
  """An adapter of a small run, whose client is the stand-in."""
  package = types.ModuleType('agmlib')
  package.agm = agm_client  # type: ignore[attr-defined]
  with mock.patch.dict(sys.modules, agmlib=package):
    return runpy.run_path(str(_ADAPTER))['Adapter'](small.config(**overrides))


class AdapterTest(absltest.TestCase):
  def test_asks_for_the_multiples_of_the_client(self):
    # A learning rate and a width that the client's own bounds would move.
    adapter = _adapter(
      optim__learning_rate=3e-6,
      loss__clip_eps_low=3e-4,
      loss__clip_eps_high=4e-4,
    )
    client = agm_client.ControllerSuite(base_hyperparams=_BASE)
    paces = set()
    for record in _records():
      asked = adapter(record)
      theirs = client.update(
        agm_client.build_telemetry_from_hmpo_record(record)
      )['hyperparams']
      self.assertAlmostEqual(
        asked['learning_rate'] / 3e-6, theirs['learning_rate'] / 1e-3
      )
      self.assertAlmostEqual(asked['epsilon'] / 4e-4, theirs['epsilon'] / 0.1)
      self.assertEqual(asked['agm_iterations'], theirs['agm_iterations'])
      paces.add(round(asked['learning_rate'] / 3e-6, 3))
    self.assertGreater(len(paces), 5)
    self.assertBetween(min(paces), 0.6, 1.3)
    self.assertBetween(max(paces), 0.6, 1.3)

  def test_performance_is_what_every_step_measures(self):
    # The held-out reward stands still between evaluations, the other rises.
    adapter = _adapter()
    client = agm_client.ControllerSuite(base_hyperparams=_BASE)
    reasons = []
    for step in range(1, 61):
      record = {
        'step': step,
        'arithmetic_history': [1.05] * 10,
        'harmonic_history': [0.95] * 10,
        'train_reward_mean': 0.8 + step / 1000,
        'eval_reward': 0.9,
      }
      self.assertFalse(adapter(record)['early_stop']['should_stop'], step)
      reasons.append(
        client.update(agm_client.build_telemetry_from_hmpo_record(record))[
          'early_stop'
        ]['reason']
      )
    self.assertEqual(reasons.index('agm_optimal_point_reached'), 39)

  def test_decides_within_the_bounds_of_the_run(self):
    with tempfile.TemporaryDirectory() as name:
      agm_client.install(pathlib.Path(name))
      out = pathlib.Path(name) / 'answers.jsonl'
      result = self._replay(
        name, f'--out={out}', '--config.control.learning_rate_low=8e-4'
      )
      self.assertEqual(result.returncode, 0, result.stderr)
      lines = [json.loads(line) for line in out.read_text('utf-8').splitlines()]
    asked = [c for line in lines for c in line['changes']]
    # No batch_size, which would be refused each time.
    self.assertEqual(
      {c['name'] for c in asked}, {'learning_rate', 'epsilon', 'agm_iterations'}
    )
    rates = [c['after'] for c in asked if c['name'] == 'learning_rate']
    np.testing.assert_allclose(rates[0], 1e-3)  # of one record: no speed yet
    self.assertEqual(min(rates), 8e-4)
    self.assertNotIn('batch_size', result.stdout)

  def test_without_the_client_a_line_says_what_is_missing(self):
    result = self._replay('')
    self.assertEqual(result.returncode, 2)
    self.assertRegex(
      result.stderr, r"\Aerror: .*No module named 'agmlib'.*\n\Z"
    )

  def _replay(self, path, *arguments):
    return subprocess.run(
      [
        sys.executable,
        _ROOT / 'experiments' / 'replay_controller.py',
        f'--workdir={_RUN}',
        f'--controller={_ADAPTER}:Adapter',
        *arguments,
      ],
      env=os.environ | {'PYTHONPATH': os.pathsep.join([str(_ROOT), path])},
      capture_output=True,
      text=True,
      check=False,
    )


if __name__ == '__main__':
  absltest.main()
