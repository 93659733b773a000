"""What a controller may ask, and what becomes of it."""

import json
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from hmpo_jax import config as config_lib
from hmpo_jax.config import traced
from hmpo_jax.run import control
from tests import controller_file

_FIRST = (0.01, 0.05, -1.0, 5)  # settings of the small run


class AnswerTest(controller_file.ControllerFileTest):
  def _answer(self, function, **overrides):
    config = self.config(function, **overrides)
    return control.Controller(config).ask(
      {'step': 1}, control.first_settings(config)
    )

  def _says(self, text, **overrides):
    self.file.write_text(self.TEXT.replace('ANSWER', text), 'utf-8')
    return self._answer('asks', **overrides)

  def _ask(self, answer, **overrides):
    return self._says(repr(answer), **overrides)

  def test_decision_within_its_bounds_holds(self):
    answer = self._ask({'learning_rate': 1e-3, 'agm_iterations': 7})
    self.assertEqual(answer.settings, (1e-3, 0.05, -1.0, 7))
    self.assertEqual(
      answer.changes,
      [
        ('learning_rate', 0.01, 1e-3, 1e-3, ''),
        ('agm_iterations', 5, 7.0, 7, ''),
      ],
    )

  @parameterized.parameters(
    ('learning_rate', 1.0, 5e-3),
    ('learning_rate', -1, 1e-5),
    ('epsilon', 0.9, 0.5),
    ('epsilon', 0, 0.01),
    ('p', -7, -2.0),
    ('agm_iterations', 0, 1),
    ('agm_iterations', 1e9, 10),
  )
  def test_decision_beyond_its_bounds_is_cut(self, name, asked, after):
    (change,) = self._ask({name: asked}).changes
    self.assertEqual((change.asked, change.after), (asked, after))
    self.assertStartsWith(change.note, 'must be from ')

  @parameterized.parameters(
    'float("nan")', 'float("inf")', '"high"', '[1.]', 'None', '10**400', 'True'
  )
  def test_what_is_no_number_changes_nothing(self, asked):
    answer = self._says(f'{{"learning_rate": {asked}}}')
    self.assertEqual(answer.settings, _FIRST)
    self.assertEqual(answer.changes[0].note, 'must be a finite number')
    json.dumps(answer.line(False), allow_nan=False)

  @parameterized.parameters(
    ({'loss__name': 'reinforce', 'loss__p': -1.0}, 'p', 'has no order'),
    ({'loss__name': 'reinforce', 'loss__p': -1.0}, 'epsilon', 'no clip range'),
    ({'loss__clip_eps_high': math.inf}, 'epsilon', 'is inf'),
    ({'tracking__rate': 0.1}, 'epsilon', 'tracking.rate moves'),
    ({'exponent__kind': 'adaptive'}, 'p', 'moves the order'),
    ({}, 'batch_size', 'shape of the program is fixed'),
  )  # pyformat: disable
  def test_what_cannot_be_changed_says_why(self, overrides, name, reason):
    answer = self._ask({name: 0.1}, **overrides)
    (change,) = answer.changes
    self.assertEqual((change.before, change.asked), (change.after, 0.1))
    self.assertIn(reason, change.note)

  def test_form_of_external_controllers(self):
    answer = self._answer('nested')
    self.assertEqual(answer.settings, (0.002, 0.3, -1.0, 5))
    self.assertEqual(answer.stop, '')

  @parameterized.parameters(
    '{"learning_rate": Bad()}',
    '{"early_stop": Bad()}',
    '{"early_stop": {"should_stop": True, "reason": Bad()}}',
    'BadDict(p=1)',
    '{"early_stop": "False"}',
    '{"early_stop": [False, False]}',
  )
  def test_answer_that_breaks_changes_nothing(self, answer):
    answer = self._says(answer)
    self.assertEqual((answer.settings, answer.changes), (_FIRST, []))
    self.assertNotEmpty(answer.error)
    self.assertNotIn('\n', answer.error)

  @parameterized.parameters(
    'np.float32(.25)', 'np.array(.25)', '__import__("jax").numpy.float32(.25)'
  )
  def test_numbers_of_arrays(self, asked):
    self.assertEqual(self._says(f'{{"p": {asked}}}').settings.p, 0.25)

  def test_exception_without_a_text(self):
    answer = self._answer('bad_text')
    self.assertIn('BadText', answer.error)

  def test_record_stays_as_it_is(self):
    record = {'step': 1, 'arithmetic_history': [1.0, 2.0]}
    config = self.config('clears')
    control.Controller(config).ask(record, control.first_settings(config))
    self.assertEqual(record, {'step': 1, 'arithmetic_history': [1.0, 2.0]})

  def test_rounding_is_told(self):
    (change,) = self._ask({'agm_iterations': 4.6}).changes
    self.assertEqual((change.after, change.note), (5, 'rounded'))

  def test_record_holds_what_can_be_changed(self):
    config = self.config('lower', exponent__kind='adaptive', tracking__rate=0.1)
    held = control.Controller(config).held(control.first_settings(config))
    self.assertEqual(
      held, {'control/learning_rate': 0.01, 'control/agm_iterations': 5}
    )

  @parameterized.parameters(3, [[1, 2]], 'text')
  def test_other_answers_are_errors(self, answer):
    answer = self._ask(answer)
    self.assertIn('must be a dict of decisions or None', answer.error)
    self.assertEqual(answer.changes, [])

  def test_none_decides_nothing(self):
    self.assertEqual(self._ask(None)[1:], ([], '', '', False))

  @parameterized.parameters(
    (True, 'no reason given'),
    (False, ''),
    ({'should_stop': True, 'reason': 'x'}, 'x'),
    ({'should_stop': False, 'reason': 'x'}, ''),
  )
  def test_early_stop(self, asked, stop):
    self.assertEqual(self._ask({'early_stop': asked}).stop, stop)

  def test_function_that_hangs_is_left(self):
    answer = self._answer('hang', control__timeout=0.1)
    self.assertIn(
      'took longer than config.control.timeout = 0.1 s', answer.error
    )

  @parameterized.parameters('number', 'nobody', 'Broken', 'Plain')
  def test_function_that_cannot_be_made_is_refused(self, name):
    with self.assertRaisesRegex(
      config_lib.ConfigError, r'config\.control\.function = .*' + name
    ):
      control.Controller(self.config(name))

  def test_class_gets_a_copy_of_the_configuration(self):
    config = self.config('Picky', loss__p=0.0)
    answer = control.Controller(config).ask(
      {'step': 1}, control.first_settings(config)
    )
    self.assertEqual((answer.settings.p, config.loss.p), (-1.0, 0.0))


class AppliedTest(controller_file.ControllerFileTest):
  def _applied(self, config, **settings):
    first = control.first_settings(config)
    hparams = traced.hparams(config)
    return hparams, control.applied(hparams, first, first._replace(**settings))

  def test_nothing_decided_changes_no_bit(self):
    before, after = self._applied(self.config())
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
      self.assertEqual(np.asarray(a).tobytes(), np.asarray(b).tobytes())

  def test_both_learning_rates_and_both_sides_move_by_one_factor(self):
    config = self.config(
      loss__clip_eps_low=0.1,
      loss__clip_eps_high=0.2,
      optim__name='muon_clip',
      optim__adam_learning_rate=0.04,
    )
    _, after = self._applied(config, learning_rate=0.005, epsilon=0.3, p=0.5)
    self.assertAlmostEqual(after.learning_rate, 0.005)
    self.assertAlmostEqual(after.adam_learning_rate, 0.02)
    self.assertAlmostEqual(after.loss['clip_eps_low'], 0.15)
    self.assertAlmostEqual(after.loss['clip_eps_high'], 0.3)
    self.assertEqual(after.exponent.start, 0.5)

  def test_rate_of_zero_stops_all(self):
    config = self.config(optim__name='muon_clip')
    _, after = self._applied(config, learning_rate=0.0)
    self.assertEqual((after.learning_rate, after.adam_learning_rate), (0, 0))

  def test_open_side_stays_open(self):
    config = self.config(loss__name='cispo', loss__clip_eps_low=1.0)
    _, after = self._applied(config, epsilon=0.02)
    self.assertEqual(after.loss['clip_eps_low'], 1)

  def test_degenerate_starts(self):
    config = self.config(optim__learning_rate=0.0, loss__clip_eps_low=0.9)
    before, after = self._applied(config, learning_rate=0.005, epsilon=0.5)
    self.assertEqual(after.adam_learning_rate, before.adam_learning_rate)
    self.assertAlmostEqual(after.loss['clip_eps_low'], 0.99)


if __name__ == '__main__':
  absltest.main()
