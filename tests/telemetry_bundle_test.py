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

from hmpo_jax import run_folder
from hmpo_jax import telemetry

_ROOT = pathlib.Path(__file__).parent.parent
_BUNDLE = _ROOT / 'results' / 'agm_telemetry'
_MAX_BYTES = 5e6


def _main(program, *arguments):
  return subprocess.run(
      [sys.executable, _ROOT / 'experiments' / program, *arguments],
      env=os.environ | {'PYTHONPATH': str(_ROOT)},
      capture_output=True,
      text=True,
      check=False)


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
      self.assertEqual([r['step'] for r in records],
                       list(range(1,
                                  len(records) + 1)))
      for record in records:
        self.assertEqual([e.message for e in validator.iter_errors(record)], [],
                         run)

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
        run_folder.write_json(folder / 'start.json', {'eval/reward': first})
        run_folder.write_json(folder / 'summary.json', {})
        runs.append({'folder': str(folder.relative_to(plan))})
      run_folder.write_json(plan / 'plan.json', {
          'name': 'plan_telemetry',
          'runs': runs
      })
      result = _main('export_telemetry.py', f'--workdir={plan}',
                     f'--out={name}/out')
      self.assertEqual(result.returncode, 0, result.stderr)
      self.assertEqual(
          pathlib.Path(name, 'out', 'README.md').read_text('utf-8'), card)

  def test_plan_that_is_not_finished_is_refused(self):
    with tempfile.TemporaryDirectory() as name:
      plan = {'name': 'x', 'runs': [{'folder': 'calm/harmonic/seed-0'}]}
      run_folder.write_json(pathlib.Path(name, 'plan.json'), plan)
      result = _main('export_telemetry.py', f'--workdir={name}',
                     f'--out={name}/out')
    self.assertEqual(result.returncode, 2)
    self.assertRegex(result.stderr, r'^error: .* not finished.*\n$')


class ReplayTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()  # pylint: disable=consider-using-with
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.recorded = _BUNDLE / 'calm' / 'harmonic' / 'seed-0'

  def _replay(self, controller, *arguments):
    return _main('replay_controller.py', f'--workdir={self.recorded}',
                 f'--controller={controller}', *arguments)

  def test_shows_and_writes_what_it_would_have_decided(self):
    out = self.folder / 'answers.jsonl'
    result = self._replay('hmpo_jax.controllers:Adaptive', f'--out={out}',
                          '--config.control.every=2')
    self.assertEqual(result.returncode, 0, result.stderr)
    lines = [json.loads(line) for line in out.read_text('utf-8').splitlines()]
    steps = len(_records(self.recorded))
    self.assertEqual([line['step'] for line in lines],
                     list(range(2, steps + 1, 2)))
    self.assertEqual({c['name'] for line in lines for c in line['changes']},
                     {'p'})
    self.assertIn(f'{steps // 2} answers', result.stdout)

  def test_detector_of_full_convergence_ends_a_healthy_run_early(self):
    result = self._replay('hmpo_jax.controllers:FullConvergence')
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertRegex(
        result.stdout, r'would have ended the run at step \d+ of \d+ '
        r'\(agm_full_convergence\): training reward 0\.\d+ there')
    result = self._replay('hmpo_jax.controllers:ClipNormalisedConvergence')
    self.assertNotIn('would have ended', result.stdout)

  def test_bounds_of_another_configuration(self):
    file = self.folder / 'mine.py'
    file.write_text('def high(record): return {"epsilon": 0.4}\n', 'utf-8')
    result = self._replay(f'{file}:high', '--config.control.epsilon_high=0.1')
    self.assertIn('step 1: epsilon 0.05 -> 0.1 (asked 0.4: must be from 0.01',
                  result.stdout)

  def test_bad_input_ends_in_one_line(self):
    for arguments in (['nobody:home'], [
        'hmpo_jax.controllers:Adaptive', '--config.control.evry=2'
    ], ['']):
      result = self._replay(*arguments)
      self.assertEqual(result.returncode, 2, arguments)
      self.assertRegex(result.stderr, r'\Aerror: .*\n\Z')


if __name__ == '__main__':
  absltest.main()
