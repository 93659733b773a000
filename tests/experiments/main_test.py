"""Runs the real main.py as its user would, in processes of their own."""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

_ROOT = pathlib.Path(__file__).parents[2]
# Plans are compare.py's.
_CONFIGS = sorted(
  file.stem
  for file in (_ROOT / 'configs').glob('*.py')
  if not file.stem.startswith('plan')
)


def _main(cwd, *arguments):
  """The finished process of `python experiments/main.py arguments`."""
  environment = os.environ | {'PYTHONPATH': str(_ROOT)}
  return subprocess.run(
    [sys.executable, str(_ROOT / 'experiments' / 'main.py'), *arguments],
    cwd=cwd,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )


class MainTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  @parameterized.parameters(*_CONFIGS)
  def test_every_config_runs_two_steps(self, name):
    command = [
      f'--config={_ROOT}/configs/{name}.py',
      '--config.num_steps=2',
      '--config.warm_start.num_steps=2',
      '--config.eval.num_prompts=8',
    ]
    if name != 'smoke':  # the others compile in two thirds of the time
      command.append('--config.mechanism.every=0')
    result = _main(self.folder, *command)
    self.assertEqual(result.returncode, 0, result.stderr)
    run = self.folder / 'runs' / name
    self._check_metrics(run)
    summary = json.loads((run / 'summary.json').read_text(encoding='utf-8'))
    self.assertEqual(summary['steps'], 2)
    self.assertIn('held-out reward', result.stdout + result.stderr)
    for part in (
      'checkpoints',
      'tensorboard',
      'warm_start',
      'timing.jsonl',
      'config.json',
    ):
      self.assertTrue((run / part).exists(), part)

  def test_finished_run_stays_as_it_is(self):
    command = (f'--config={_ROOT}/configs/smoke.py', '--config.num_steps=1')
    result = _main(self.folder, *command)
    self.assertEqual(result.returncode, 0, result.stderr)
    run = self.folder / 'runs' / 'smoke'
    before = (run / 'metrics.jsonl').read_bytes()
    again = _main(self.folder, *command)
    self.assertEqual(again.returncode, 0, again.stderr)
    self.assertIn('held-out reward', again.stdout + again.stderr)
    self.assertEqual((run / 'metrics.jsonl').read_bytes(), before)

  def _check_metrics(self, run):
    lines = (run / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    records = [json.loads(line) for line in lines]
    self.assertEqual([record['step'] for record in records], [1, 2])
    for record in records:
      for key, value in record.items():
        for number in value if isinstance(value, list) else [value]:
          self.assertTrue(math.isfinite(number), key)
      self.assertEqual(record['nonfinite_values'], 0)
    rows = (run / 'metrics.csv').read_text(encoding='utf-8').splitlines()
    self.assertLen(rows, 3)

  @parameterized.named_parameters(
    ('unknown_key', ['--config.loss.pp=1'], 'loss.pp'),
    ('wrong_type', ['--config.num_steps=many'], 'num_steps'),
    (
      'out_of_range',
      ['--config.loss.clip_eps_low=1.5'],
      'config.loss.clip_eps_low = 1.5: must be from 1e-6 to 1',
    ),
    ('stray', ['extra'], 'extra'),
  )
  def test_bad_input_is_one_line_and_leaves_nothing(self, arguments, expected):
    result = _main(
      self.folder, f'--config={_ROOT}/configs/smoke.py', *arguments
    )
    self.assertEqual(result.returncode, 2, result.stderr)
    self.assertIn(expected, result.stderr)
    self.assertLen(result.stderr.strip().splitlines(), 1)
    self.assertEmpty(list(self.folder.iterdir()))

  @parameterized.named_parameters(
    ('none', [], 'no configuration'),
    ('missing', ['--config=nowhere.py'], 'nowhere.py'),
  )
  def test_no_configuration(self, arguments, expected):
    result = _main(self.folder, *arguments)
    self.assertEqual(result.returncode, 2, result.stderr)
    self.assertIn(expected, result.stderr)
    self.assertLen(result.stderr.strip().splitlines(), 1)


if __name__ == '__main__':
  absltest.main()
