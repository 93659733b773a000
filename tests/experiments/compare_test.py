"""Runs the real compare.py and report.py as their user would."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from absl.testing import absltest
from absl.testing import parameterized
import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_PLAN = """
from hmpo_jax.plan import design


def get_config():
  variant = design.Variant
  return design.Plan(
      question='Does it run?',
      exploratory=True,
      seeds=(0, 1),
      tasks={{'sort': {{}}}},
      base={{
          'num_steps': {num_steps},
          'task.num_digits': 3,
          'model.num_layers': 1,
          'model.embed_dim': 16,
          'model.num_heads': 2,
          'model.num_kv_heads': 1,
          'model.head_dim': 8,
          'model.mlp_dim': 16,
          'rollout.num_prompts': 4,
          'rollout.group_size': 4,
          'train.num_minibatches': 2,
          'train.max_skips': 4,
          'optim.name': 'adamw',
          'optim.qk_clip': 'off',
          'warm_start.num_steps': 3,
          'eval.every': 2,
          'eval.num_prompts': 16,
          'checkpoint.every': 2,
          'mechanism.every': 0,
      }},
      variants={{
          'gspo': variant({{'loss.p': 0.}}, exploratory=False),
          'hmpo': variant({{'loss.p': -1.}}, exploratory=False),
          {more}
      }},
      contrasts=[design.Contrast('hmpo', 'gspo', 'area')])
"""
_FAULTY = """
          'wild': variant({'optim.learning_rate': 1e38}),
          'bad': variant({'loss.clip': 'none'}),
"""


def _environment():
  return os.environ | {'PYTHONPATH': str(_ROOT)}


def _program(name, cwd, *arguments):
  """The finished process of a program in experiments/."""
  return subprocess.run(
    [sys.executable, str(_ROOT / 'experiments' / f'{name}.py'), *arguments],
    cwd=cwd,
    env=_environment(),
    capture_output=True,
    text=True,
    check=False,
  )


def _metrics(folder):
  """Bytes of the metrics of all runs below a folder, by their place."""
  return {
    file.relative_to(folder): file.read_bytes()
    for file in sorted(folder.rglob('metrics.jsonl'))
  }


class CompareTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    scratch = tempfile.TemporaryDirectory()
    self.addCleanup(scratch.cleanup)
    self.folder = pathlib.Path(scratch.name)

  def _write(self, num_steps=4, more=''):
    file = self.folder / 'small.py'
    file.write_text(_PLAN.format(num_steps=num_steps, more=more))
    return f'--config={file}'

  def test_failing_runs_are_named_and_leave_the_others(self):
    config = self._write(more=_FAULTY)
    made = _program('compare', self.folder, config, '--jobs=1')
    self.assertEqual(made.returncode, 3, made.stderr)
    plan = self.folder / 'runs' / 'small'
    for seed in (0, 1):
      for name in ('gspo', 'hmpo'):
        self.assertTrue(
          (plan / f'sort/{name}/seed-{seed}/summary.json').exists()
        )
      self.assertIn(f'sort/wild/seed-{seed}: step', made.stderr)
      self.assertIn(f'sort/bad/seed-{seed}: config.loss.clip', made.stderr)
    self._check_pairing(plan)
    self._check_single_run(plan / 'sort/hmpo/seed-1')
    self._check_report(plan)
    # Once more: nothing is left to do but to say what has failed.
    before = _metrics(plan)
    again = _program('compare', self.folder, config, '--jobs=1')
    self.assertEqual(again.returncode, 3, again.stderr)
    self.assertEqual(_metrics(plan), before)

  def _check_pairing(self, plan):
    first = lambda name, seed: json.loads(
      (plan / f'sort/{name}/seed-{seed}/metrics.jsonl')
      .read_text(encoding='utf-8')
      .splitlines()[0]
    )['rollout/digest']
    self.assertEqual(first('gspo', 0), first('hmpo', 0))
    self.assertNotEqual(first('gspo', 0), first('gspo', 1))

  def _check_single_run(self, run):
    """A run by itself has the bits that it has in the plan."""
    alone = self.folder / 'alone'
    made = _program(
      'main', self.folder, f'--config={run}/config.json', f'--workdir={alone}'
    )
    self.assertEqual(made.returncode, 0, made.stderr)
    for name in ('metrics.jsonl', 'metrics.csv', 'summary.json'):
      self.assertEqual((alone / name).read_bytes(), (run / name).read_bytes())

  def _check_report(self, plan):
    made = _program('report', self.folder, f'--workdir={plan}')
    self.assertEqual(made.returncode, 0, made.stderr)
    text = (plan / 'report' / 'report.md').read_text(encoding='utf-8')
    self.assertIn('Does it run?', text)
    self.assertIn('wild', text)

  @pytest.mark.long
  def test_killed_plan_goes_on_to_the_same_bytes(self):
    config = self._write(num_steps=12)
    whole = _program(
      'compare', self.folder, config, '--workdir=whole', '--jobs=1'
    )
    self.assertEqual(whole.returncode, 0, whole.stderr)
    self._kill_in_the_middle(config)
    again = _program(
      'compare', self.folder, config, '--workdir=killed', '--jobs=1'
    )
    self.assertEqual(again.returncode, 0, again.stderr)
    self.assertEqual(
      _metrics(self.folder / 'killed'), _metrics(self.folder / 'whole')
    )

  def _kill_in_the_middle(self, config):
    """SIGKILL for the plan's process; its worker ends after its step."""
    with subprocess.Popen(
      [
        sys.executable,
        str(_ROOT / 'experiments' / 'compare.py'),
        config,
        '--workdir=killed',
        '--jobs=1',
      ],
      cwd=self.folder,
      env=_environment(),
      stderr=subprocess.DEVNULL,
    ) as process:
      file = self.folder / 'killed/sort/gspo/seed-0/metrics.jsonl'
      while process.poll() is None and not (
        file.exists() and file.read_bytes().count(b'\n') >= 5
      ):
        time.sleep(0.01)
      process.send_signal(signal.SIGKILL)

  def test_dry_run_tells_and_makes_nothing(self):
    made = _program(
      'compare',
      self.folder,
      self._write(),
      '--dry-run',
      '--only=gspo',
      '--seeds=1',
    )
    self.assertEqual(made.returncode, 0, made.stderr)
    for words in (
      'runs, programs',
      '1, 1',
      'time, estimated',
      'GB',
      'best template',
      'score alike',
      'smallest effect',
    ):
      self.assertIn(words, made.stdout)
    self.assertEmpty(_metrics(self.folder))

  def test_plan_that_can_not_answer_is_refused(self):
    config = self._write()
    file = self.folder / 'small.py'
    file.write_text(
      file.read_text().replace('exploratory=True', 'exploratory=False')
    )
    made = _program('compare', self.folder, config)
    self.assertEqual(made.returncode, 2)
    self.assertIn("2 seeds can't decide 1 contrasts", made.stderr)
    self.assertEmpty(_metrics(self.folder))

  @parameterized.parameters(
    (('--config=nowhere.py',), "there is no file 'nowhere.py'"),
    ((f'--config={_ROOT}/configs/smoke.py',), 'must return a'),
    ((f'--config={_ROOT}/configs/plan.py', '--only=hnpo'), 'hnpo'),
    ((f'--config={_ROOT}/configs/plan.py', '--config.loss.q=1'), 'loss.q'),
    ((f'--config={_ROOT}/configs/plan.py', 'stray'), "'stray'"),
    ((), 'no plan'),
  )
  def test_bad_input_is_one_line(self, arguments, words):
    made = _program('compare', self.folder, *arguments)
    self.assertEqual(made.returncode, 2, made.stderr)
    self.assertIn(words, made.stderr)
    self.assertNotIn('Traceback', made.stderr)


@pytest.mark.long
class PlansTest(parameterized.TestCase):
  @parameterized.parameters(
    ('plan', 'gspo,hmpo'),
    ('plan_long', 'gspo,hmpo'),
    ('plan_atlas', 'grpo,gmpo'),
  )
  def test_first_two_cells_for_a_few_steps(self, name, variants):
    with tempfile.TemporaryDirectory() as scratch:
      made = _program(
        'compare',
        scratch,
        f'--config={_ROOT}/configs/{name}.py',
        '--seeds=1',
        f'--only={variants}',
        '--config.num_steps=2',
      )
      self.assertEqual(made.returncode, 0, made.stderr)
      plan = pathlib.Path(scratch) / 'runs' / name
      made = _program('report', scratch, f'--workdir={plan}')
      self.assertEqual(made.returncode, 0, made.stderr)


if __name__ == '__main__':
  absltest.main()
