"""Histories of the A-H iteration, and the record that controllers read."""

import copy
import csv
import json
import math
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import jsonschema
import numpy as np

from hmpo_jax import metrics
from hmpo_jax import telemetry
from hmpo_jax import trainer
from hmpo_jax import update
from hmpo_jax.kernels import agm
from tests import small

_histories = jax.jit(agm.histories)


def _iterates(a, h, num=agm.MAX_ITERATIONS):
  """a_0 to a_K and h_0 to h_K, as the iteration is written."""
  pairs = [(a, h)]
  for _ in range(num):
    a, h = (a + h) / 2, 2 * a * h / (a + h)
    pairs.append((a, h))
  return np.array(pairs).T


class HistoriesTest(parameterized.TestCase):

  def test_rows_are_iterated_and_then_averaged(self):
    # Rows {4, 1}: A = 5/2, H = 8/5; {2}: both 2; one without tokens.
    log_ratio = jnp.log(jnp.array([[4., 1.], [2., 9.], [7., 7.]]))
    mask = jnp.array([[True, True], [True, False], [False, False]])
    result = _histories(jnp.where(mask, log_ratio, 0), mask, 0.2, 0.2)
    first, second = _iterates(5 / 2, 8 / 5), _iterates(2., 2.)
    a, h = (first + second) / 2
    np.testing.assert_allclose(result['arithmetic_history'], a, rtol=3e-7)
    np.testing.assert_allclose(result['harmonic_history'], h, rtol=3e-7)
    # Iterates of the averages (9/4 and 9/5) are others.
    self.assertGreater(abs(_iterates(9 / 4, 9 / 5)[0][-1] - a[-1]), 1e-3)

  @parameterized.parameters(
      (.2, .2, (math.log(1.2) - math.log(.8)) / 2),
      (.1, .4, (math.log(1.4) - math.log(.9)) / 2),
      (1., .4, math.log(1.4)),
      (.1, math.inf, -math.log(.9)),
      (1., math.inf, 1.),
  )
  def test_clip_normalised_ones_start_from_roots(self, low, high, width):
    log_ratio = jnp.log(jnp.array([[1.2, .9]]))
    result = _histories(log_ratio, jnp.ones((1, 2), bool), low, high)
    a, h = _iterates(((1.2 + .9) / 2)**(1 / width),
                     (2 / (1 / 1.2 + 1 / .9))**(1 / width))
    np.testing.assert_allclose(result['arithmetic_history_clip'], a, rtol=2e-6)
    np.testing.assert_allclose(result['harmonic_history_clip'], h, rtol=2e-6)

  def test_gap_that_the_clip_can_tell_is_no_convergence(self):
    # The rule of the controllers, 1 - mean |a - h| / (|a| + |h|): ratios .95 to
    # 1.05 look converged, and are not for a range of 0.01.
    log_ratio = jnp.log(jnp.array([[.95, 1.05, 1.]]))
    result = _histories(log_ratio, jnp.ones((1, 3), bool), .01, .01)
    distance = lambda suffix: float(
        abs(result[f'arithmetic_history{suffix}'][0] - result[
            f'harmonic_history{suffix}'][0]) /
        (result[f'arithmetic_history{suffix}'][0] + result[
            f'harmonic_history{suffix}'][0]))
    self.assertLess(distance(''), .001)
    self.assertGreater(distance('_clip'), .05)

  def test_extreme_ratios_stay_finite(self):
    log_ratio = jnp.array([[20., -20., 20.], [0., 0., 0.]])
    result = _histories(log_ratio, jnp.ones((2, 3), bool), .05, .05)
    for name, values in result.items():
      self.assertTrue(np.all(np.isfinite(values)), name)
    # A row e^8 and one of 1.
    np.testing.assert_allclose(
        result['arithmetic_history_clip'][0], (math.exp(8) + 1) / 2, rtol=1e-6)

  def test_without_rows_all_is_zero(self):
    result = _histories(jnp.zeros((2, 3)), jnp.zeros((2, 3), bool), .05, .05)
    for values in result.values():
      np.testing.assert_array_equal(values, 0)

  def test_no_gradient(self):
    total = lambda x: sum(
        jnp.sum(v)
        for v in agm.histories(x, jnp.ones((1, 2), bool), .1, .1).values())
    np.testing.assert_array_equal(jax.grad(total)(jnp.array([[.1, .3]])), 0)


def _record(**changes):
  """The metrics of a step from which its fields are made."""
  history = np.arange(11, dtype=np.float32)
  return {
      'arithmetic_history': history,
      'harmonic_history': history,
      'arithmetic_history_clip': history,
      'harmonic_history_clip': history,
      'advantage/mean': np.float32(.5),
      'advantage/std': np.float32(3.),
      'reward/mean': np.float32(.75),
      'eval/reward': .5,
      'qk/clipped_frac': np.float32(.25),
  } | changes


class RangeTest(parameterized.TestCase):

  @parameterized.parameters(
      ({}, math.log(1.4) - math.log(.6)),
      ({
          'loss__clip': 'token_log'
      }, .8),
      ({
          'loss__name': 'reinforce'
      }, 2.),
      ({
          'loss__name': 'sapo'
      }, 2.),
      ({
          'loss__name': 'cispo',
          'loss__clip_eps_low': 1.
      }, 2 * math.log(1.4)),
  )
  def test_histories_are_in_widths_of_the_loss(self, overrides, both):
    widths = {} if overrides.get('loss__name') in ('reinforce', 'sapo') else {
        'loss__clip_eps_low': .4,
        'loss__clip_eps_high': .4
    }
    static, hparams, _ = small.start(small.config(**(widths | overrides)))
    low, high = update._clip_range(  # pylint: disable=protected-access
        static, update.start_controls(hparams))
    x = jnp.array([[.1, -.1]])
    result = _histories(x, jnp.ones((1, 2), bool), low, high)
    log_a = math.log(math.cosh(.1))
    np.testing.assert_allclose(
        np.log(result['arithmetic_history_clip'][0]),
        log_a / (both / 2),
        rtol=1e-4)


class FieldsTest(parameterized.TestCase):

  def test_values(self):
    fields = telemetry.fields(_record(), {'train_reward_mean': .5}, 3)
    np.testing.assert_array_equal(fields['harmonic_history_clip'], [0, 1, 2, 3])
    self.assertEqual(
        {
            k: float(v) for k, v in fields.items() if 'history' not in k
        }, {
            'td_mean': .5,
            'td_var': 9.,
            'q_rel_change': .5,
            'train_reward_mean': .75,
            'eval_reward': .5,
            'muon_clip_active': 1.,
            'muon_clip_rate': .25,
        })
    self.assertIs(fields['muon_clip_active'], True)

  def test_first_step_has_no_change(self):
    self.assertEqual(telemetry.fields(_record(), {}, 3)['q_rel_change'], 0)

  def test_change_from_nothing_is_finite(self):
    fields = telemetry.fields(_record(), {'train_reward_mean': 0.}, 3)
    self.assertEqual(fields['q_rel_change'], np.float32(.75 / 1e-8))

  def test_step_without_a_sound_update_clipped_nothing(self):
    fields = telemetry.fields(
        _record(**{'qk/clipped_frac': np.float32(np.nan)}), {}, 3)
    self.assertEqual(fields['muon_clip_rate'], 0)
    self.assertIs(fields['muon_clip_active'], False)


class RecordTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()  # pylint: disable=consider-using-with
    cls.addClassCleanup(folder.cleanup)
    cls.folder = pathlib.Path(folder.name)
    # A tau that clips, ratios that move, and a reward that moves with them.
    trainer.train(
        small.config(
            num_steps=4,
            optim__qk_clip='weights',
            optim__tau=.01,
            control__agm_iterations=3,
            eval__every=3), cls.folder)
    text = (cls.folder / metrics.METRICS).read_text('utf-8')
    cls.records = [json.loads(line) for line in text.splitlines()]

  def test_every_record_obeys_the_schema(self):
    validator = jsonschema.Draft202012Validator(telemetry.schema())
    validator.check_schema(telemetry.schema())
    for record in self.records:
      self.assertEqual([e.message for e in validator.iter_errors(record)], [])

  def test_schema_refuses_what_controllers_cannot_read(self):
    validator = jsonschema.Draft202012Validator(telemetry.schema())
    for name, value in (('step', 0), ('step', '1'), ('arithmetic_history', []),
                        ('arithmetic_history', [1., None]),
                        ('muon_clip_active', 1.), ('muon_clip_rate', 1.01),
                        ('eval_reward', None), ('policy/entropy', None),
                        ('policy/entropy', 'low'), ('qk/max_logit_per_head',
                                                    [[1.]])):
      record = copy.deepcopy(self.records[0]) | {name: value}
      self.assertFalse(validator.is_valid(record), (name, value))
    for name in telemetry.schema()['required']:
      record = {k: v for k, v in self.records[0].items() if k != name}
      self.assertFalse(validator.is_valid(record), name)

  def test_every_field_says_what_it_is(self):
    for name, field in telemetry.schema()['properties'].items():
      self.assertGreater(len(field['description']), 15, name)

  def test_histories_start_at_the_means_of_the_step(self):
    for record in self.records:
      self.assertLen(record['arithmetic_history'], 4)
      self.assertLen(record['harmonic_history_clip'], 4)
      for name in ('arithmetic', 'harmonic'):
        np.testing.assert_allclose(
            record[f'{name}_history'][0], record[f'agm/{name}'], rtol=3e-7)
      self.assertGreater(record['agm/gap'], 0)

  def test_fields_follow_their_sources(self):
    before = None
    for record in self.records:
      self.assertEqual(record['train_reward_mean'], record['reward/mean'])
      self.assertEqual(record['eval_reward'], record['eval/reward'])
      self.assertIs(record['muon_clip_active'], True)
      self.assertEqual(record['muon_clip_rate'], record['qk/clipped_frac'])
      change = abs(record['reward/mean'] - before) / before if before else 0
      self.assertAlmostEqual(record['q_rel_change'], change, places=6)
      before = record['reward/mean']
    self.assertGreater(max(r['q_rel_change'] for r in self.records), 0)

  def test_table_holds_a_boolean_as_a_number(self):
    # What reads CSV takes the text False as true.
    text = (self.folder / metrics.TABLE).read_text('utf-8')
    rows = list(csv.DictReader(text.splitlines()))
    self.assertEqual([row['muon_clip_active'] for row in rows], ['1'] * 4)


if __name__ == '__main__':
  absltest.main()
