"""Runs under live control: the log, what resumes, and how they end."""

import contextlib
import io
import json
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from hmpo_jax import config as config_lib
from hmpo_jax.plan import design
from hmpo_jax.run import batch as run_batch
from hmpo_jax.run import controllers
from hmpo_jax.run import records as run_records
from hmpo_jax.run import rerun
from hmpo_jax.run import summary as summary_lib
from hmpo_jax.run import trainer
from hmpo_jax.training import update
from tests import controller_file


def _lines(folder, name):
  """Objects of a JSONL file."""
  text = (folder / name).read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


class RunTest(controller_file.ControllerFileTest):
  def test_decisions_hold_from_the_next_step_and_are_logged(self):
    trainer.train(self.config('lower', control__every=2), self.folder / 'run')
    records = _lines(self.folder / 'run', run_records.METRICS)
    rates = [record['control/learning_rate'] for record in records]
    self.assertEqual(rates, [0.01, 0.01, 0.01 / 3, 0.01 / 3])
    self.assertEqual(
      [r['clip/eps_high'] for r in records], [0.05, 0.05, 0.2, 0.2]
    )
    self.assertEqual(
      [r['clip/eps_low'] for r in records], [0.05, 0.05, 0.2, 0.2]
    )
    two, four = _lines(self.folder / 'run', run_records.CONTROL)
    self.assertEqual((two['step'], four['step']), (2, 4))
    self.assertEqual(
      two['changes'][0],
      {
        'name': 'learning_rate',
        'before': 0.01,
        'asked': 0.01 / 3,
        'after': 0.01 / 3,
        'note': '',
      },
    )

  def test_closing_table_says_what_was_changed(self):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
      summary = trainer.train(
        self.config('lower', control__every=2), self.folder / 'run'
      )
    self.assertEqual(
      summary['controlled'],
      {
        'learning_rate': {
          'first': 0.01,
          'last': 0.002,  # the bound
          'changes': 2,
        },
        'epsilon': {'first': 0.05, 'last': 0.2, 'changes': 1},
      },
    )
    self.assertRegex(
      output.getvalue(),
      'changed by the controller +learning_rate 0.01 -> '
      '0.002 in 2 changes; epsilon 0.05 -> 0.2\n',
    )

  def test_controller_that_changed_nothing_is_said_to_have(self):
    summary = trainer.train(self.config('stop'), self.folder / 'run')
    rows = lambda: dict(summary_lib.rows(summary, self.folder))
    self.assertEqual(rows()['changed by the controller'], 'nothing')
    del summary['controlled']  # as in a run without one
    self.assertNotIn('changed by the controller', rows())

  def test_rate_that_was_decided_is_the_one_that_moves_the_policy(self):
    trainer.train(
      self.config('asks', control__learning_rate_low=0.0),
      self._answering({'learning_rate': 0}),
    )
    records = _lines(self.folder / 'run', run_records.METRICS)
    self.assertGreater(records[0]['update/norm'], 0)
    self.assertEqual([r['update/norm'] for r in records[1:]], [0, 0, 0])

  def _answering(self, answer):
    self.file.write_text(self.TEXT.replace('ANSWER', repr(answer)), 'utf-8')
    return self.folder / 'run'

  @parameterized.parameters(
    (
      'Moody',
      [-1, -0.1, -0.1, -0.3],
      'raised ValueError: bad mood (mine.py, line 17)',
      False,
    ),
    # A new one is shown the record of step 1 alone.
    (
      'Frail',
      [-1, -0.1, -0.1, -0.2],
      'ended its process with exit code 1',
      True,
    ),
  )
  def test_resumed_run_repeats_the_decisions(self, name, orders, fault, lost):
    config = self.config(name)
    trainer.train(config, self.folder / 'whole')
    save = trainer.session.Session.save

    def killed(run, state):
      save(run, state)
      if run.step == 2:
        raise KeyboardInterrupt

    with mock.patch.object(trainer.session.Session, 'save', killed):
      with self.assertRaises(KeyboardInterrupt):
        trainer.train(config, self.folder / 'cut')
    trainer.train(config, self.folder / 'cut')
    for file in (run_records.METRICS, run_records.CONTROL, 'summary.json'):
      self.assertEqual(
        (self.folder / 'whole' / file).read_bytes(),
        (self.folder / 'cut' / file).read_bytes(),
        file,
      )
    records = _lines(self.folder / 'cut', run_records.METRICS)
    np.testing.assert_allclose(
      [r['exponent/p'] for r in records], orders, rtol=1e-6
    )
    line = _lines(self.folder / 'cut', run_records.CONTROL)[1]
    self.assertEqual((line['error'], line['lost']), (fault, lost))
    with rerun.opened(self.folder / 'cut', self.fail) as recorded:
      self.assertEqual(recorded.verify().difference, '')

  def test_controller_that_changed_its_mind_is_told(self):
    config = self.config('Moody')
    notes = []
    with mock.patch.object(
      trainer.session.Session, 'finish', side_effect=KeyboardInterrupt
    ):
      with self.assertRaises(KeyboardInterrupt):
        trainer.train(config, self.folder / 'run')
    self.file.write_text(self.TEXT.replace('-.1', '-.2'), 'utf-8')
    with mock.patch.object(
      trainer.progress_lib.Progress, 'note', lambda _, text: notes.append(text)
    ):
      trainer.train(config, self.folder / 'run')
    self.assertLen(notes, 2)
    self.assertIn('source of config.control.function has changed', notes[0])
    self.assertIn('decides otherwise', notes[1])

  @parameterized.parameters((False, 4), (True, 2))
  def test_stops_only_where_it_may(self, may_stop, steps):
    config = self.config('stop', control__may_stop=may_stop)
    summary = trainer.train(config, self.folder / 'run')
    self.assertEqual(
      (summary['steps'], summary['early_stop']),
      (steps, 'ripe' if may_stop else ''),
    )
    line = _lines(self.folder / 'run', run_records.CONTROL)[1]
    self.assertEqual((line['stop'], line['stopped']), ('ripe', may_stop))
    self.assertEqual(trainer.train(config, self.folder / 'run'), summary)

  def test_run_that_is_ended_is_evaluated(self):
    config = self.config('stop', control__may_stop=True, eval__every=3)
    summary = trainer.train(config, self.folder / 'run')
    records = _lines(self.folder / 'run', run_records.METRICS)
    self.assertEqual(records[-1]['eval/step'], 0)
    whole = trainer.train(
      self.config(num_steps=2, eval__every=3), self.folder / 'whole'
    )
    self.assertEqual(
      summary['heldout_reward_last'], whole['heldout_reward_last']
    )

  def test_controller_that_hangs_is_not_caught_up(self):
    config = self.config('hangs_when_asked_again', control__timeout=0.5)
    notes = []
    with mock.patch.object(
      trainer.session.Session, 'finish', side_effect=KeyboardInterrupt
    ):
      with self.assertRaises(KeyboardInterrupt):
        trainer.train(config, self.folder / 'run')
    (self.folder / 'again').touch()
    with mock.patch.object(
      trainer.progress_lib.Progress, 'note', lambda _, text: notes.append(text)
    ):
      trainer.train(config, self.folder / 'run')
    self.assertLen(notes, 1)
    self.assertIn(
      'on the record of step 1; it is not shown those up to step 4', notes[0]
    )

  def test_damaged_log_is_bad_input(self):
    (self.folder / run_records.CONTROL).write_text('{"step": 3}\n', 'utf-8')
    with self.assertRaisesRegex(config_lib.ConfigError, 'line 1: damaged'):
      run_records.read_control(self.folder)

  def test_runs_of_a_group_have_controllers_of_their_own(self):
    configs = [self.config('lower', seed=s) for s in (0, 1)]
    configs.append(self.config('', seed=2))
    names = [f'group-{s}' for s in range(3)]
    told = []
    run_batch.train(
      [(c, self.folder / n) for c, n in zip(configs, names)], told.append
    )
    self.assertEqual([r.kind for r in told if r.kind != 'step'], ['done'] * 3)
    for config, name in zip(configs, names):
      trainer.train(config, self.folder / f'{name}-alone')
      self.assertEqual(
        (self.folder / name / run_records.METRICS).read_bytes(),
        (self.folder / f'{name}-alone' / run_records.METRICS).read_bytes(),
        name,
      )

  def test_plan_refuses_a_controller_that_may_stop(self):
    run = design.Run(
      'sort',
      'hmpo',
      0,
      pathlib.PurePath('run'),
      {
        'control.function': 'hmpo_jax.run.controllers:Adaptive',
        'control.may_stop': True,
      },
    )
    with self.assertRaisesRegex(config_lib.ConfigError, 'may_stop = True'):
      design.configuration(run, '')


class AdaptiveTest(controller_file.ControllerFileTest):
  _KEYS = {
    'num_steps': 8,
    'loss__p': 0.5,
    'optim__learning_rate': 0.03,
  }

  def test_makes_the_decisions_of_the_order_inside_the_program(self):
    inside = self.config(exponent__kind='adaptive', **self._KEYS)
    trainer.train(inside, self.folder / 'inside')
    records = _lines(self.folder / 'inside', run_records.METRICS)
    orders = [np.float32(r['exponent/p']) for r in records]
    self.assertGreater(len(set(orders)), 3)
    replayed = controllers.Adaptive(inside.copy_and_resolve_references())
    asked = [np.float32(replayed(record)['p']) for record in records]
    self.assertEqual(asked[:-1], orders[1:])
    outside = self.config(**self._KEYS)
    outside.control.function = 'hmpo_jax.run.controllers:Adaptive'
    trainer.train(outside, self.folder / 'outside')
    for here, there in zip(
      _lines(self.folder / 'outside', run_records.METRICS), records
    ):
      for name, value in there.items():
        if not name.startswith('exponent/'):
          self.assertEqual(here[name], value, (there['step'], name))

  def test_step_without_a_sound_update_has_no_gap(self):
    adaptive = controllers.Adaptive(self.config(loss__p=0.5))
    record = {'agm/log_gap': 9.0, 'qk/max_logit_per_update': [0.0, 0.0]}
    none = {f'skipped/{cause}': 0 for cause in update.NUMERICAL_CAUSES}
    bad = adaptive(record | none | {'skipped/loss': 2})
    self.assertEqual(bad['p'], 0.5)
    self.assertLess(adaptive(record | none | {'skipped/loss': 1})['p'], 0.5)


if __name__ == '__main__':
  absltest.main()
