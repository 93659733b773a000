"""Live control: bounds, the log, what resumes, and what can go wrong."""

import json
import math
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from hmpo_jax import config as config_lib
from hmpo_jax import control
from hmpo_jax import controllers
from hmpo_jax import group
from hmpo_jax import metrics
from hmpo_jax import partition
from hmpo_jax import rerun
from hmpo_jax import trainer
from hmpo_jax import update
from hmpo_jax.plan import design
from tests import small

# A file of controllers, as a user would write it.
_FILE = """
import time
def lower(record):
  return {'learning_rate': .01 / (1 + record['step']), 'epsilon': .2}
def stop(record):
  return {'early_stop': {'should_stop': record['step'] >= 2, 'reason': 'ripe'}}
def nested(record):
  return {'phase': 'exploration', 'early_stop': {'should_stop': False},
          'hyperparams': {'learning_rate': .002, 'epsilon': .3,
                          'batch_size': 384, 'agm_iterations': 4.8}}
def asks(record): return ANSWER
class Moody:
  def __init__(self): self.calls = 0
  def __call__(self, record):
    self.calls += 1
    if record['step'] == 2: raise ValueError('bad\\nmood')
    return {'p': -.1 * self.calls}
class Picky:
  def __init__(self, config): self.low = config.loss.p - 1; config.loss.p = 9.
  def __call__(self, record): return {'p': self.low}
class Broken:
  def __init__(self): raise OSError('no disk')
def hang(record): time.sleep(30)
def hangs_when_asked_again(record):
  import pathlib
  if pathlib.Path(__file__).with_name('again').exists(): time.sleep(30)
  return {'p': -.5}
def clears(record):
  for value in record.values():
    if isinstance(value, list): value.clear()
  record.clear()
class Plain: pass
class BadText(Exception):
  def __str__(self): raise SystemExit
def bad_text(record): raise BadText
class Bad:
  def __repr__(self): raise ValueError('no text')
  __str__ = __bool__ = __float__ = __repr__
class BadDict(dict):
  def get(self, *_): raise ValueError('no get')
number = 3
"""


class _FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()  # pylint: disable=consider-using-with
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.file = self.folder / 'mine.py'
    self.file.write_text(_FILE, encoding='utf-8')

  def config(self, function='', **overrides):
    """A small run with a controller of the file."""
    name = f'{self.file}:{function}' if function else ''
    return small.config(**({
        'num_steps': 4,
        'eval__every': 4,
        'checkpoint__every': 2,
        'control__function': name
    } | overrides))


class AnswerTest(_FolderTest):

  def _ask(self, answer, **overrides):
    self.file.write_text(_FILE.replace('ANSWER', repr(answer)), 'utf-8')
    config = self.config('asks', **overrides)
    return control.Controller(config).ask({'step': 1},
                                          control.first_settings(config))

  def test_decision_within_its_bounds_holds(self):
    answer = self._ask({'learning_rate': 1e-3, 'agm_iterations': 7})
    self.assertEqual(answer.settings, (1e-3, .05, -1., 7))
    self.assertEqual(answer.changes, [('learning_rate', .01, 1e-3, 1e-3, ''),
                                      ('agm_iterations', 5, 7., 7, '')])

  @parameterized.parameters(
      ('learning_rate', 1., 5e-3), ('learning_rate', -1, 1e-5),
      ('epsilon', .9, .5), ('epsilon', 0, .01), ('p', -7, -2.),
      ('agm_iterations', 0, 1), ('agm_iterations', 1e9, 10))
  def test_decision_beyond_its_bounds_is_cut(self, name, asked, after):
    change, = self._ask({name: asked}).changes
    self.assertEqual((change.asked, change.after), (asked, after))
    self.assertStartsWith(change.note, 'must be from ')

  @parameterized.parameters('float("nan")', 'float("inf")', '"high"', '[1.]',
                            'None')
  def test_what_is_no_number_changes_nothing(self, asked):
    self.file.write_text(
        _FILE.replace('ANSWER', f'{{"learning_rate": {asked}}}'), 'utf-8')
    config = self.config('asks')
    first = control.first_settings(config)
    answer = control.Controller(config).ask({'step': 1}, first)
    self.assertEqual(answer.settings, first)
    self.assertEqual(answer.changes[0].note, 'must be a finite number')
    json.dumps(answer.line(False), allow_nan=False)

  @parameterized.parameters(
      ({
          'loss__name': 'reinforce',
          'loss__p': -1.
      }, 'p', 'has no order'),
      ({
          'loss__name': 'reinforce',
          'loss__p': -1.
      }, 'epsilon', 'no clip range'),
      ({
          'loss__clip_eps_high': math.inf
      }, 'epsilon', 'is inf'),
      ({
          'tracking__rate': .1
      }, 'epsilon', 'tracking.rate moves'),
      ({
          'exponent__kind': 'adaptive'
      }, 'p', 'moves the order'),
      ({}, 'batch_size', 'shape of the program is fixed'),
  )  # pyformat: disable
  def test_what_cannot_be_changed_says_why(self, overrides, name, reason):
    answer = self._ask({name: .1}, **overrides)
    change, = answer.changes
    self.assertEqual((change.before, change.asked), (change.after, .1))
    self.assertIn(reason, change.note)

  def test_form_of_external_controllers(self):
    config = self.config('nested')
    answer = control.Controller(config).ask({'step': 1},
                                            control.first_settings(config))
    self.assertEqual(answer.settings, (.002, .3, -1., 5))
    self.assertEqual(answer.stop, '')

  @parameterized.parameters(
      '{"learning_rate": Bad()}', '{"early_stop": Bad()}',
      '{"early_stop": {"should_stop": True, "reason": Bad()}}', 'BadDict(p=1)',
      '{"early_stop": "False"}', '{"early_stop": [False, False]}')
  def test_answer_that_breaks_changes_nothing(self, answer):
    self.file.write_text(_FILE.replace('ANSWER', answer), 'utf-8')
    config = self.config('asks')
    first = control.first_settings(config)
    answer = control.Controller(config).ask({'step': 1}, first)
    self.assertEqual((answer.settings, answer.changes), (first, []))
    self.assertNotEmpty(answer.error)
    self.assertNotIn('\n', answer.error)

  @parameterized.parameters('10**400', 'True')
  def test_odd_numbers_change_nothing(self, asked):
    self.file.write_text(
        _FILE.replace('ANSWER', f'{{"learning_rate": {asked}}}'), 'utf-8')
    config = self.config('asks')
    first = control.first_settings(config)
    answer = control.Controller(config).ask({'step': 1}, first)
    self.assertEqual(answer.settings, first)
    self.assertEqual(answer.changes[0].note, 'must be a finite number')

  @parameterized.parameters('np.float32(.25)', 'np.array(.25)',
                            '__import__("jax").numpy.float32(.25)')
  def test_numbers_of_arrays(self, asked):
    self.file.write_text(
        'import numpy as np\n' + _FILE.replace('ANSWER', f'{{"p": {asked}}}'),
        'utf-8')
    config = self.config('asks')
    answer = control.Controller(config).ask({'step': 1},
                                            control.first_settings(config))
    self.assertEqual(answer.settings.p, .25)

  def test_exception_without_a_text(self):
    config = self.config('bad_text')
    answer = control.Controller(config).ask({'step': 1},
                                            control.first_settings(config))
    self.assertIn('BadText', answer.error)

  def test_record_stays_as_it_is(self):
    record = {'step': 1, 'arithmetic_history': [1., 2.]}
    config = self.config('clears')
    control.Controller(config).ask(record, control.first_settings(config))
    self.assertEqual(record, {'step': 1, 'arithmetic_history': [1., 2.]})

  def test_rounding_is_told(self):
    change, = self._ask({'agm_iterations': 4.6}).changes
    self.assertEqual((change.after, change.note), (5, 'rounded'))

  def test_record_holds_what_can_be_changed(self):
    config = self.config('lower', exponent__kind='adaptive', tracking__rate=.1)
    held = control.Controller(config).held(control.first_settings(config))
    self.assertEqual(held, {
        'control/learning_rate': .01,
        'control/agm_iterations': 5
    })

  @parameterized.parameters(3, [[1, 2]], 'text')
  def test_other_answers_are_errors(self, answer):
    answer = self._ask(answer)
    self.assertIn('must be a dict of decisions or None', answer.error)
    self.assertEqual(answer.changes, [])

  def test_none_decides_nothing(self):
    self.assertEqual(self._ask(None)[1:], ([], '', '', False))

  @parameterized.parameters((True, 'no reason given'), (False, ''), ({
      'should_stop': True,
      'reason': 'x'
  }, 'x'), ({
      'should_stop': False,
      'reason': 'x'
  }, ''))
  def test_early_stop(self, asked, stop):
    self.assertEqual(self._ask({'early_stop': asked}).stop, stop)

  def test_function_that_hangs_is_left(self):
    config = self.config('hang', control__timeout=.1)
    answer = control.Controller(config).ask({'step': 1},
                                            control.first_settings(config))
    self.assertIn('took longer than config.control.timeout = 0.1 s',
                  answer.error)

  @parameterized.parameters('number', 'nobody', 'Broken', 'Plain')
  def test_function_that_cannot_be_made_is_refused(self, name):
    with self.assertRaisesRegex(config_lib.ConfigError,
                                r'config\.control\.function = .*' + name):
      control.Controller(self.config(name))

  def test_class_gets_a_copy_of_the_configuration(self):
    config = self.config('Picky', loss__p=0.)
    answer = control.Controller(config).ask({'step': 1},
                                            control.first_settings(config))
    self.assertEqual((answer.settings.p, config.loss.p), (-1., 0.))


class AppliedTest(_FolderTest):

  def _applied(self, config, **settings):
    first = control.first_settings(config)
    hparams = partition.hparams(config)
    return hparams, control.applied(hparams, first, first._replace(**settings))

  def test_nothing_decided_changes_no_bit(self):
    before, after = self._applied(self.config())
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
      self.assertEqual(np.asarray(a).tobytes(), np.asarray(b).tobytes())

  def test_both_learning_rates_and_both_sides_move_by_one_factor(self):
    config = self.config(
        loss__clip_eps_low=.1,
        loss__clip_eps_high=.2,
        optim__name='muon_clip',
        optim__adam_learning_rate=.04)
    _, after = self._applied(config, learning_rate=.005, epsilon=.3, p=.5)
    self.assertAlmostEqual(after.learning_rate, .005)
    self.assertAlmostEqual(after.adam_learning_rate, .02)
    self.assertAlmostEqual(after.loss['clip_eps_low'], .15)
    self.assertAlmostEqual(after.loss['clip_eps_high'], .3)
    self.assertEqual(after.exponent.start, .5)

  def test_rate_of_zero_stops_all(self):
    config = self.config(optim__name='muon_clip')
    _, after = self._applied(config, learning_rate=0.)
    self.assertEqual((after.learning_rate, after.adam_learning_rate), (0, 0))

  def test_open_side_stays_open(self):
    config = self.config(loss__name='cispo', loss__clip_eps_low=1.)
    _, after = self._applied(config, epsilon=.02)
    self.assertEqual(after.loss['clip_eps_low'], 1)

  def test_degenerate_starts(self):
    config = self.config(optim__learning_rate=0., loss__clip_eps_low=.9)
    before, after = self._applied(config, learning_rate=.005, epsilon=.5)
    self.assertEqual(after.adam_learning_rate, before.adam_learning_rate)
    self.assertAlmostEqual(after.loss['clip_eps_low'], .99)


def _lines(folder, name):
  """Objects of a JSONL file."""
  text = (folder / name).read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


class RunTest(_FolderTest):

  def test_decisions_hold_from_the_next_step_and_are_logged(self):
    trainer.train(self.config('lower', control__every=2), self.folder / 'run')
    records = _lines(self.folder / 'run', metrics.METRICS)
    rates = [record['control/learning_rate'] for record in records]
    self.assertEqual(rates, [.01, .01, .01 / 3, .01 / 3])
    self.assertEqual([r['clip/eps_high'] for r in records], [.05, .05, .2, .2])
    self.assertEqual([r['clip/eps_low'] for r in records], [.05, .05, .2, .2])
    two, four = _lines(self.folder / 'run', metrics.CONTROL)
    self.assertEqual((two['step'], four['step']), (2, 4))
    self.assertEqual(
        two['changes'][0], {
            'name': 'learning_rate',
            'before': .01,
            'asked': .01 / 3,
            'after': .01 / 3,
            'note': ''
        })

  def test_rate_that_was_decided_is_the_one_that_moves_the_policy(self):
    trainer.train(
        self.config('asks', control__learning_rate_low=0.),
        self._answering({'learning_rate': 0}))
    records = _lines(self.folder / 'run', metrics.METRICS)
    self.assertGreater(records[0]['update/norm'], 0)
    self.assertEqual([r['update/norm'] for r in records[1:]], [0, 0, 0])

  def _answering(self, answer):
    self.file.write_text(_FILE.replace('ANSWER', repr(answer)), 'utf-8')
    return self.folder / 'run'

  def test_resumed_run_repeats_the_decisions(self):
    config = self.config('Moody')
    trainer.train(config, self.folder / 'whole')
    save = trainer.open_run.OpenRun.save

    def killed(run, state):
      save(run, state)
      if run.step == 2:
        raise KeyboardInterrupt

    with mock.patch.object(trainer.open_run.OpenRun, 'save', killed):
      with self.assertRaises(KeyboardInterrupt):
        trainer.train(config, self.folder / 'cut')
    trainer.train(config, self.folder / 'cut')
    for name in (metrics.METRICS, metrics.CONTROL, 'summary.json'):
      self.assertEqual((self.folder / 'whole' / name).read_bytes(),
                       (self.folder / 'cut' / name).read_bytes(), name)
    records = _lines(self.folder / 'cut', metrics.METRICS)
    np.testing.assert_allclose([r['exponent/p'] for r in records],
                               [-1, -.1, -.1, -.3],
                               rtol=1e-6)
    error = _lines(self.folder / 'cut', metrics.CONTROL)[1]['error']
    self.assertEqual(error, 'raised ValueError: bad mood')
    with rerun.opened(self.folder / 'cut', self.fail) as recorded:
      self.assertEqual(recorded.verify().difference, '')

  def test_controller_that_changed_its_mind_is_told(self):
    config = self.config('Moody')
    notes = []
    with mock.patch.object(
        trainer.open_run.OpenRun, 'finish', side_effect=KeyboardInterrupt):
      with self.assertRaises(KeyboardInterrupt):
        trainer.train(config, self.folder / 'run')
    self.file.write_text(_FILE.replace('-.1', '-.2'), 'utf-8')
    with mock.patch.object(trainer.progress_lib.Progress, 'note',
                           lambda _, text: notes.append(text)):
      trainer.train(config, self.folder / 'run')
    self.assertIn('decides otherwise', notes[0])

  @parameterized.parameters((False, 4), (True, 2))
  def test_stops_only_where_it_may(self, may_stop, steps):
    config = self.config('stop', control__may_stop=may_stop)
    summary = trainer.train(config, self.folder / 'run')
    self.assertEqual((summary['steps'], summary['early_stop']),
                     (steps, 'ripe' if may_stop else ''))
    line = _lines(self.folder / 'run', metrics.CONTROL)[1]
    self.assertEqual((line['stop'], line['stopped']), ('ripe', may_stop))
    self.assertEqual(trainer.train(config, self.folder / 'run'), summary)

  def test_run_that_is_ended_is_evaluated(self):
    config = self.config('stop', control__may_stop=True, eval__every=3)
    summary = trainer.train(config, self.folder / 'run')
    records = _lines(self.folder / 'run', metrics.METRICS)
    self.assertEqual(records[-1]['eval/step'], 0)
    whole = trainer.train(
        self.config(num_steps=2, eval__every=3), self.folder / 'whole')
    self.assertEqual(summary['heldout_reward_last'],
                     whole['heldout_reward_last'])

  def test_controller_that_hangs_is_not_caught_up(self):
    config = self.config('hangs_when_asked_again', control__timeout=.5)
    notes = []
    with mock.patch.object(
        trainer.open_run.OpenRun, 'finish', side_effect=KeyboardInterrupt):
      with self.assertRaises(KeyboardInterrupt):
        trainer.train(config, self.folder / 'run')
    (self.folder / 'again').touch()
    with mock.patch.object(trainer.progress_lib.Progress, 'note',
                           lambda _, text: notes.append(text)):
      trainer.train(config, self.folder / 'run')
    self.assertLen(notes, 1)
    self.assertIn('on the record of step 1; it is not shown those up to step 4',
                  notes[0])

  def test_damaged_log_is_bad_input(self):
    (self.folder / metrics.CONTROL).write_text('{"step": 3}\n', 'utf-8')
    with self.assertRaisesRegex(config_lib.ConfigError, 'line 1: damaged'):
      metrics.read_control(self.folder)

  def test_runs_of_a_group_have_controllers_of_their_own(self):
    configs = [self.config('lower', seed=s) for s in (0, 1)]
    configs.append(self.config('', seed=2))
    names = [f'group-{s}' for s in range(3)]
    told = []
    group.train([(c, self.folder / n) for c, n in zip(configs, names)],
                told.append)
    self.assertEqual([r.kind for r in told if r.kind != 'step'], ['done'] * 3)
    for config, name in zip(configs, names):
      trainer.train(config, self.folder / f'{name}-alone')
      self.assertEqual(
          (self.folder / name / metrics.METRICS).read_bytes(),
          (self.folder / f'{name}-alone' / metrics.METRICS).read_bytes(), name)

  def test_plan_refuses_a_controller_that_may_stop(self):
    run = design.Run(
        'sort', 'hmpo', 0, pathlib.PurePath('run'), {
            'control.function': 'hmpo_jax.controllers:Adaptive',
            'control.may_stop': True
        })
    with self.assertRaisesRegex(config_lib.ConfigError, 'may_stop = True'):
      design.configuration(run, '')


class AdaptiveTest(_FolderTest):

  _KEYS = {
      'num_steps': 8,
      'loss__p': .5,
      'optim__learning_rate': .03,
  }

  def test_makes_the_decisions_of_the_order_inside_the_program(self):
    inside = self.config(exponent__kind='adaptive', **self._KEYS)
    trainer.train(inside, self.folder / 'inside')
    records = _lines(self.folder / 'inside', metrics.METRICS)
    orders = [np.float32(r['exponent/p']) for r in records]
    self.assertGreater(len(set(orders)), 3)
    replayed = controllers.Adaptive(inside.copy_and_resolve_references())
    asked = [np.float32(replayed(record)['p']) for record in records]
    self.assertEqual(asked[:-1], orders[1:])
    outside = self.config(**self._KEYS)
    outside.control.function = 'hmpo_jax.controllers:Adaptive'
    trainer.train(outside, self.folder / 'outside')
    for here, there in zip(
        _lines(self.folder / 'outside', metrics.METRICS), records):
      for name, value in there.items():
        if not name.startswith('exponent/'):
          self.assertEqual(here[name], value, (there['step'], name))

  def test_step_without_a_sound_update_has_no_gap(self):
    adaptive = controllers.Adaptive(self.config(loss__p=.5))
    record = {'agm/log_gap': 9., 'qk/max_logit_per_update': [0., 0.]}
    none = {f'skipped/{cause}': 0 for cause in update.NUMERICAL_CAUSES}
    bad = adaptive(record | none | {'skipped/loss': 2})
    self.assertEqual(bad['p'], .5)
    self.assertLess(adaptive(record | none | {'skipped/loss': 1})['p'], .5)


if __name__ == '__main__':
  absltest.main()
