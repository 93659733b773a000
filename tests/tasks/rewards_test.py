"""A user's reward function: what it gets, and every way in which it fails."""

import contextlib
import io
import json
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.run import batch as run_batch
from hmpo_jax.run import folder as run_folder
from hmpo_jax.run import records as run_records
from hmpo_jax.run import rerun
from hmpo_jax.run import trainer
from hmpo_jax.tasks import rewards
from tests import small
from tests import user_file

# The share of right tokens, as the task's own reward counts it; it breaks once
# the file `fault` stands beside it.
_SORTED = """
import math, pathlib, time
fault = pathlib.Path(__file__).with_name('fault')
def judge(prompts, responses):
  if fault.exists():
    exec(fault.read_text())
  rewards = []
  for prompt, response in zip(prompts, responses):
    answer = sorted(prompt[:-1]) + [1]
    right = sum(a == b for a, b in zip(answer, response))
    rewards.append(right / len(answer))
  return rewards + ([0.5] if fault.exists() else [])
number = 3
def nothing(prompts, responses): return None
def texts(prompts, responses): return ['a'] * len(prompts)
def large(prompts, responses): return [2.] * len(prompts)
def seen(prompts, responses): return [(10 * len(p) + len(r)) / 100
                                      for p, r in zip(prompts, responses)]
def leave(prompts, responses): raise SystemExit('bye\\nbye')
def hang(prompts, responses): time.sleep(60)
class Mute(Exception):
  def __str__(self): raise ValueError
def mute(prompts, responses): raise Mute
"""


class _FolderTest(user_file.UserFileTest):
  TEXT = _SORTED


class HostRewardTest(_FolderTest):
  def _host(self, function, timeout=5.0):
    return rewards.HostReward(f'{self.file}:{function}', timeout, 3)

  def test_gets_tokens_without_padding(self):
    rollout = base.Rollout(
      tokens=np.array([[0, 7, 8, 4, 1, 0], [5, 7, 8, 4, 4, 4]]),
      valid=np.array([[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]], bool),
      mask=np.array([[1, 1, 0], [1, 1, 1]], bool),
      logprobs=np.zeros((2, 3)),
    )
    scores = self._host('seen')(rollout)
    np.testing.assert_allclose(scores.reward, [0.22, 0.33])
    np.testing.assert_array_equal(scores.exact, [0, 0])

  @parameterized.parameters(
    ('nothing', 'returned'),
    ('texts', 'returned no numbers'),
    ('large', 'returned values from 2 to 2, must be from 0 to 1'),
    ('leave', 'raised SystemExit: bye bye'),
    ('mute', r'raised Mute \(its text could not be made\)'),
    ('hang', r'took longer than config\.reward\.timeout = 0\.1 s'),
  )
  def test_failure_is_named(self, function, words):
    rollout = base.Rollout(*(np.ones((2, 6), bool) for _ in range(4)))
    with self.assertRaisesRegex(rewards.RewardError, words) as caught:
      self._host(function, timeout=0.1)(rollout)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters('number', 'missing', '')
  def test_no_such_function(self, function):
    with self.assertRaisesRegex(config_lib.ConfigError, 'module:function'):
      self._host(function)

  @parameterized.parameters('', 'no_such_module:f', 'nowhere.py:f', 'os')
  def test_no_such_module(self, name):
    with self.assertRaisesRegex(config_lib.ConfigError, 'module:function'):
      rewards.HostReward(name, 1.0, 3)


class TrainTest(_FolderTest):
  def _config(self, **overrides):
    return small.config(
      **(
        {
          'num_steps': 4,
          'eval__every': 2,
          'warm_start__num_steps': 3,
          'reward__function': f'{self.file}:judge',
        }
        | overrides
      )
    )

  def test_equals_the_run_with_the_reward_inside_jit(self):
    host = trainer.train(self._config(), self.folder / 'host')
    inside = trainer.train(
      self._config(reward__function=''), self.folder / 'inside'
    )
    for name in (
      'heldout_reward_first',
      'heldout_reward_last',
      'ratio_mean',
      'majority_reward',
    ):
      self.assertAlmostEqual(host[name], inside[name], places=4)

  @parameterized.named_parameters(
    (
      'raises',
      'raise RuntimeError("broken")',
      r'^step 4: .* raised RuntimeError: broken \(mine\.py, line 6\)$',
    ),
    ('shape', '', r'^step 4: .* returned shape \(33,\)'),
  )
  def test_failure_keeps_all_steps_before_it(self, fault, words):
    trainer.train(self._config(), self.folder / 'whole')
    workdir, calls = self.folder / 'run', []
    write = run_records.Writer.write

    def write_and_break(writer, step, *args):
      write(writer, step, *args)
      calls.append(step)
      if step == 3:
        (self.folder / 'fault').write_text(fault)

    with mock.patch.object(run_records.Writer, 'write', write_and_break):
      with self.assertRaisesRegex(trainer.RewardStop, words):
        trainer.train(self._config(), workdir)
      (self.folder / 'fault').unlink()
      trainer.train(self._config(), workdir)
    self.assertEqual(calls, [1, 2, 3, 4])
    self.assertEqual(
      (workdir / 'metrics.jsonl').read_bytes(),
      (self.folder / 'whole' / 'metrics.jsonl').read_bytes(),
    )

  def test_changed_source_is_told_and_written_down(self):
    workdir, config = self.folder / 'run', self._config(checkpoint__every=2)
    save, notes = trainer.session.Session.save, []

    def killed(run, state):
      save(run, state)
      if run.step == 2:
        raise KeyboardInterrupt

    def train():
      with (
        mock.patch.object(
          trainer.progress_lib.Progress,
          'note',
          lambda _, text: notes.append(text),
        ),
        mock.patch.object(trainer.progress_lib, 'tell', notes.append),
      ):
        trainer.train(config, workdir)

    with mock.patch.object(trainer.session.Session, 'save', killed):
      with self.assertRaises(KeyboardInterrupt):
        train()
    first = run_folder.inputs(config)['reward.function']
    self.file.write_text(f'{self.TEXT}# mended', encoding='utf-8')
    train()
    self.assertLen(notes, 1)
    self.assertIn(
      'source of config.reward.function has changed since step 2', notes[0]
    )
    described = json.loads((workdir / 'config.json').read_text('utf-8'))
    self.assertEqual(described['inputs']['reward.function'], first)
    self.assertEqual(
      described['changes'],
      [{'after_step': 2, 'inputs': run_folder.inputs(config)}],
    )
    train()  # which has ended, and is what it was
    self.assertLen(notes, 1)
    with rerun.opened(workdir, self.fail) as recorded:
      check = recorded.verify()
    self.assertEqual((check.start, check.end, check.difference), (2, 4, ''))
    self.file.write_text(f'{self.TEXT}# again', encoding='utf-8')
    train()
    self.assertIn('has changed since this run ended', notes[1])
    with self.assertRaisesRegex(config_lib.ConfigError, 'put it back'):
      with rerun.opened(workdir, self.fail):
        pass

  def test_run_of_a_plan_is_judged_by_its_function(self):
    config, told = self._config(reward__function=f'{self.file}:seen'), []
    trainer.train(config, self.folder / 'alone')
    run_batch.train([(config, self.folder / 'plan')], told.append)
    self.assertEqual(told[-1].kind, 'done')
    for name in (run_records.METRICS, 'summary.json'):
      self.assertEqual(
        (self.folder / 'alone' / name).read_bytes(),
        (self.folder / 'plan' / name).read_bytes(),
        name,
      )

  def test_run_of_a_plan_whose_function_fails_has_failed(self):
    told = []

    def tell(report):
      told.append(report)
      if report.step == 3:
        (self.folder / 'fault').write_text('raise ValueError("broken")')

    run_batch.train([(self._config(), self.folder / 'run')], tell)
    self.assertEqual((told[-1].kind, told[-1].step), ('failed', 3))
    self.assertRegex(told[-1].text, '^step 4: .* raised ValueError: broken')
    self.assertLen(run_records.read(self.folder / 'run'), 3)

  def test_nan_rewards_are_skipped_and_counted(self):
    values = '[float("nan"), .3] + [.1, .2] * (len(p) // 2 - 1)'
    self.file.write_text(f'def judge(p, r): return {values}')
    run = self.folder / 'run'
    table = self._stopped(run)
    self.assertRegex(table, r'held-out reward +0\.\d+ -> 0\.\d+\n')
    self.assertRegex(table, r'held-out rewards that are NaN +1, which count')
    for record in run_records.read(run):
      # One group of four is spoiled; both minibatches of an epoch see it.
      self.assertGreater(record['skipped/reward'], 0)
      self.assertGreater(record['nonfinite_values'], 0)
      self.assertGreater(record['eval/nan_rewards'], 0)

  def test_run_whose_rewards_are_all_nan_measures_nothing_and_fails(self):
    self.file.write_text('def judge(p, r): return [float("nan")] * len(p)')
    run = self.folder / 'run'
    table = self._stopped(run)
    for label in ('held-out reward', 'mean ratio', 'updates that QK-clip'):
      self.assertRegex(table, rf'\n{label}.* not measured')
    self.assertNotRegex(table, 'majority|0.0000|nan')
    self.assertFalse((run / 'summary.json').exists())
    failed = json.loads((run / 'failed.json').read_text('utf-8'))
    self.assertEqual((failed['step'], failed['final']), (4, True))
    before = (run / 'metrics.jsonl').read_bytes()
    self.assertEqual(self._stopped(run), table)
    self.assertEqual((run / 'metrics.jsonl').read_bytes(), before)

  def _stopped(self, run):
    """The table of a run that ends without a sound update."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      with self.assertRaisesRegex(
        trainer.NumericalStop, 'every update'
      ) as stop:
        trainer.train(self._config(), run)
    self.assertEqual(stop.exception.exit_code, 3)
    return out.getvalue()

  def test_file_of_prompts_trains_without_answers(self):
    prompts = self.folder / 'prompts.jsonl'
    prompts.write_text(
      '\n'.join(
        json.dumps({'prompt': [2 + i % 9, 2 + i // 9, 13]}) for i in range(81)
      )
    )
    config = self._config(
      task__name='file',
      task__prompts=str(prompts),
      task__vocab_size=14,
      task__response_len=4,
      eval__num_prompts=2,
      warm_start__num_steps=0,
    )
    summary = trainer.train(config, self.folder / 'run')
    self.assertGreater(summary['reward_last_10'], 0)
    self.assertNotIn('majority_reward', summary)
    config.warm_start.num_steps = 3
    with self.assertRaisesRegex(config_lib.ConfigError, '"answer"'):
      trainer.train(config, self.folder / 'other')
    self.assertFalse((self.folder / 'other').exists())

  def test_another_file_of_prompts_is_another_run(self):
    prompts = self.folder / 'prompts.jsonl'
    lines = [json.dumps({'prompt': [2 + i, 13]}) + '\n' for i in range(12)]
    prompts.write_text(''.join(lines), encoding='utf-8')
    description = lambda file: run_folder.describe(
      self._config(
        task__name='file',
        task__prompts=str(file),
        task__vocab_size=14,
        task__response_len=4,
      )
    )
    with run_folder.claimed(self.folder / 'run', description(prompts)):
      pass
    moved = prompts.rename(self.folder / 'moved.jsonl')
    with run_folder.claimed(self.folder / 'run', description(moved)):
      pass
    prompts.write_text(''.join(lines[1:]), encoding='utf-8')
    with self.assertRaisesRegex(
      config_lib.ConfigError, r'inputs\.task\.prompts'
    ):
      run_folder.refuse_other_run(self.folder / 'run', description(prompts))


if __name__ == '__main__':
  absltest.main()
