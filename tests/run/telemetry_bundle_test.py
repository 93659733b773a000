"""Records for others: the committed bundle, its maker, and offline replay."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from absl.testing import absltest
import jsonschema
import numpy as np

from hmpo_jax.run import files
from hmpo_jax.run import telemetry
from tests import agm_client

_ROOT = pathlib.Path(__file__).parents[2]
_BUNDLE = _ROOT / 'results' / 'agm_telemetry'
_MAX_BYTES = 5e6


def _main(program, *arguments):
  return subprocess.run(
    [sys.executable, _ROOT / 'experiments' / program, *arguments],
    env=os.environ | {'PYTHONPATH': str(_ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )


def _records(folder):
  text = (folder / 'metrics.jsonl').read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


class BundleTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.runs = sorted(file.parent for file in _BUNDLE.rglob('metrics.jsonl'))

  def test_holds_a_dozen_runs_calm_stressed_and_collapsed(self):
    self.assertGreaterEqual(len(self.runs), 12)
    size = sum(f.stat().st_size for f in _BUNDLE.rglob('*') if f.is_file())
    self.assertLess(size, _MAX_BYTES)
    regimes = {run.relative_to(_BUNDLE).parts[0] for run in self.runs}
    self.assertEqual(regimes, {'calm', 'stressed'})
    stressed = [
      r for run in self.runs if 'stressed' in run.parts for r in _records(run)
    ]
    self.assertTrue(any(record['muon_clip_active'] for record in stressed))
    self.assertIn('(collapsed)', (_BUNDLE / 'README.md').read_text('utf-8'))

  def test_every_record_obeys_the_schema(self):
    validator = jsonschema.Draft202012Validator(telemetry.schema())
    for run in self.runs:
      records = _records(run)
      self.assertEqual(
        [r['step'] for r in records], list(range(1, len(records) + 1))
      )
      for record in records:
        self.assertEqual(
          [e.message for e in validator.iter_errors(record)], [], run
        )

  def test_card_is_what_the_maker_writes_of_it(self):
    # The bundle lacks only what says that a run is finished, and its start.
    with tempfile.TemporaryDirectory() as name:
      plan = pathlib.Path(name) / 'plan'
      shutil.copytree(_BUNDLE, plan)
      card = (_BUNDLE / 'README.md').read_text(encoding='utf-8')
      rows = [
        line.split('|')[1:3]
        for line in card.splitlines()
        if line.startswith('| `')
      ]
      runs = []
      for run, reward in rows:
        folder = plan / run.strip().strip('`')
        first = float(reward.split(' to ')[0])
        files.write_json(folder / 'start.json', {'eval/reward': first})
        files.write_json(folder / 'summary.json', {})
        runs.append({'folder': str(folder.relative_to(plan))})
      files.write_json(
        plan / 'plan.json', {'name': 'plan_telemetry', 'runs': runs}
      )
      result = _main(
        'export_telemetry.py', f'--workdir={plan}', f'--out={name}/out'
      )
      self.assertEqual(result.returncode, 0, result.stderr)
      self.assertEqual(
        pathlib.Path(name, 'out', 'README.md').read_text('utf-8'), card
      )

  def test_plan_that_is_not_finished_is_refused(self):
    with tempfile.TemporaryDirectory() as name:
      plan = {'name': 'x', 'runs': [{'folder': 'calm/harmonic/seed-0'}]}
      files.write_json(pathlib.Path(name, 'plan.json'), plan)
      result = _main(
        'export_telemetry.py', f'--workdir={name}', f'--out={name}/out'
      )
    self.assertEqual(result.returncode, 2)
    self.assertRegex(result.stderr, r'^error: .* not finished.*\n$')


class ConsumerTest(absltest.TestCase):
  """What the consumer's arithmetic makes of three of the runs."""

  def _series(self, run, measure):
    return np.array(
      [
        measure(record['arithmetic_history'], record['harmonic_history'])
        for record in _records(_BUNDLE / run / 'seed-0')
      ]
    )

  def _late(self, run, measure):
    """Mean over the last 20 records, when one policy has collapsed."""
    return np.mean(self._series(run, measure)[-20:])

  def test_histories_are_those_of_the_last_ten_steps(self):
    for run in ('calm/harmonic', 'calm/collapsing', 'stressed/harmonic'):
      records = _records(_BUNDLE / run / 'seed-0')
      for i, record in enumerate(records):
        last = records[max(0, i - 9) : i + 1]
        for name in ('arithmetic', 'harmonic'):
          self.assertEqual(
            record[f'{name}_history'], [r[f'agm/{name}'] for r in last]
          )
          self.assertEqual(
            record[f'{name}_history_clip'],
            [r[f'agm/{name}_iterates_clip'][0] for r in last],
          )

  def test_calm_and_collapsing_runs_differ(self):
    calm, collapsing = 'calm/harmonic', 'calm/collapsing'
    # The gap of a policy that learns does not close.
    self.assertLess(self._late(calm, agm_client.speed), 0.15)
    self.assertGreater(self._late(collapsing, agm_client.speed), 0.25)
    variance = lambda a, h: np.var(a[-10:]) + np.var(h[-10:])
    self.assertGreater(
      self._late(calm, variance), 5 * self._late(collapsing, variance)
    )
    self.assertGreater(
      self._late(calm, agm_client.spread),
      3 * self._late(collapsing, agm_client.spread),
    )

  def test_stressed_run_differs_from_both(self):
    for measure, factor in (
      (agm_client.spread, 1.5),
      (lambda a, h: np.var(a) + np.var(h), 3),
    ):
      stressed = self._late('stressed/harmonic', measure)
      for other in ('calm/harmonic', 'calm/collapsing'):
        self.assertGreater(stressed, factor * self._late(other, measure), other)

  def test_suggestions_move_and_differ(self):
    paths = []
    for run in ('calm/harmonic', 'calm/collapsing', 'stressed/harmonic'):
      client = agm_client.ControllerSuite(
        base_hyperparams={
          'learning_rate': 1e-3,
          'epsilon': 0.1,
          'batch_size': 256,
          'agm_iterations': 5,
        }
      )
      rates = [
        client.update(agm_client.build_telemetry_from_hmpo_record(r))[
          'hyperparams'
        ]['learning_rate']
        for r in _records(_BUNDLE / run / 'seed-0')
      ]
      self.assertGreater(len(set(rates)), 5, run)
      paths.append(rates)
    self.assertGreater(paths[1][-1], 1.1 * paths[0][-1])
    self.assertNotEqual(paths[0], paths[2])


class ReplayTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.recorded = _BUNDLE / 'calm' / 'harmonic' / 'seed-0'

  def _replay(self, controller, *arguments):
    return _main(
      'replay_controller.py',
      f'--workdir={self.recorded}',
      f'--controller={controller}',
      *arguments,
    )

  def test_shows_and_writes_what_it_would_have_decided(self):
    out = self.folder / 'answers.jsonl'
    result = self._replay(
      'hmpo_jax.run.controllers:Adaptive',
      f'--out={out}',
      '--config.control.every=2',
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    lines = [json.loads(line) for line in out.read_text('utf-8').splitlines()]
    steps = len(_records(self.recorded))
    self.assertEqual(
      [line['step'] for line in lines], list(range(2, steps + 1, 2))
    )
    self.assertEqual(
      {c['name'] for line in lines for c in line['changes']}, {'p'}
    )
    self.assertIn(f'{steps // 2} answers', result.stdout)

  def test_detector_of_full_convergence_ends_a_collapsed_run(self):
    self.recorded = _BUNDLE / 'calm' / 'collapsing' / 'seed-0'
    result = self._replay('hmpo_jax.run.controllers:FullConvergence')
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertRegex(
      result.stdout,
      r'would have ended the run at step \d+ of \d+ '
      r'\(agm_full_convergence\): training reward 0\.\d+ there',
    )

  def test_bounds_of_another_configuration(self):
    file = self.folder / 'mine.py'
    file.write_text('def high(record): return {"epsilon": 0.4}\n', 'utf-8')
    result = self._replay(f'{file}:high', '--config.control.epsilon_high=0.1')
    self.assertIn(
      'step 1: epsilon 0.05 -> 0.1 (asked 0.4: must be from 0.01', result.stdout
    )

  def test_counts_what_it_refuses_apart_from_what_it_changes(self):
    file = self.folder / 'mine.py'
    file.write_text(
      'def asks(record):\n'
      '  step = record["step"]\n'
      '  return {"batch_size": 64, "epsilon": 0.9,\n'
      '          "p": -1. if step < 3 else "low",\n'
      '          "agm_iterations": 5.2}\n',
      'utf-8',
    )
    result = self._replay(f'{file}:asks')
    self.assertEqual(result.returncode, 0, result.stderr)
    steps = len(_records(self.recorded))
    # Of all that is asked one moves, once: epsilon to its bound.
    self.assertEqual(
      result.stdout.splitlines(),
      [
        'step 1: epsilon 0.05 -> 0.5 (asked 0.9: must be from 0.01 to 0.5)',
        f'agm_iterations left as it is, {steps} times: rounded',
        f'batch_size left as it is, {steps} times: the shape of the program '
        'is fixed',
        f'epsilon left as it is, {steps - 1} times: must be from 0.01 to 0.5',
        f'p left as it is, {steps - 2} times: must be a finite number',
        f'{steps} answers, {4 * steps} decisions: 1 change something, '
        f'{4 * steps - 3} are refused or cut to what holds; 0 errors',
      ],
    )

  def test_bad_input_ends_in_one_line(self):
    for arguments in (
      ['nobody:home'],
      ['hmpo_jax.run.controllers:Adaptive', '--config.control.evry=2'],
      [''],
    ):
      result = self._replay(*arguments)
      self.assertEqual(result.returncode, 2, arguments)
      self.assertRegex(result.stderr, r'\Aerror: .*\n\Z')


if __name__ == '__main__':
  absltest.main()
