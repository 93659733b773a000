"""What of a record is a measurement, from records with planted gaps."""

import math

from absl.testing import absltest
from absl.testing import parameterized

from hmpo_jax.run import measured
from hmpo_jax.training import mechanism
from hmpo_jax.training import update

_NO_SKIP = {f'skipped/{cause}': 0 for cause in update.SKIP_CAUSES}


class MeasuredTest(parameterized.TestCase):
  def test_what_was_not_finite_is_missing_and_lists_stay(self):
    record = {'step': 3, 'a': 5.0, 'b': 2.0, 'heads': [1.0, 2.0]}
    found = measured.of(record, ['a', 'heads', 'gone'])
    self.assertTrue(math.isnan(found.pop('a')))
    self.assertEqual(found, {'step': 3, 'b': 2.0, 'heads': [1.0, 2.0]})
    self.assertEqual(record['a'], 5.0)
    self.assertEqual(measured.missing(record, ['heads', 'gone']), {'heads'})

  @parameterized.parameters((4, False), (3, True))
  def test_what_an_earlier_step_measured_is_missing(self, step, is_missing):
    record = {
      'step': 4,
      'eval/step': step,
      'eval/reward': 0.5,
      'eval_reward': 0.5,
      'mechanism/step': step,
      'mechanism/sigma': 0.1,
      'qk/clip_drift_k3': 0.0,
    }
    names = {
      'eval/reward',
      'eval_reward',
      'mechanism/sigma',
      'qk/clip_drift_k3',
    }
    self.assertEqual(measured.missing(record), names if is_missing else set())

  def test_cosine_of_a_gradient_of_0_is_missing(self):
    record = {'step': 1, 'mechanism/step': 1}
    record |= dict.fromkeys(mechanism.KEYS, 0.5)
    self.assertEmpty(measured.missing(record))
    # p0 passes no gradient with the clip on; the others do.
    none = [
      name
      for name in mechanism.KEYS
      if name.startswith(('mechanism/cosine', 'mechanism/norm_ratio'))
      and 'unclipped' not in name
      and 'p0' in name
    ] + ['mechanism/cosine']
    self.assertLen(set(none), 6)
    self.assertEqual(
      measured.missing(record | dict.fromkeys(none, 0.0)), set(none)
    )

  def test_ratio_of_a_gradient_of_0_to_another_is_measured(self):
    record = {'step': 1, 'mechanism/step': 1}
    record |= dict.fromkeys(mechanism.KEYS, 0.5)
    record |= {
      'mechanism/norm_ratio_pm1_p0': 0.0,
      'mechanism/cosine': 0.0,
      'mechanism/cosine_p1_pm1': 0.0,
      'mechanism/cosine_current_pm1': 0.0,
    }
    self.assertEqual(
      measured.missing(record),
      {
        'mechanism/cosine',
        'mechanism/cosine_p1_pm1',
        'mechanism/cosine_current_pm1',
      },
    )

  def test_updates_without_a_signal_dilute_no_mean(self):
    # Of 8 updates 2 were faulty and 3 had no signal: 3 have a cosine of .8.
    record = {'step': 1, 'qk/max_logit_per_update': [1.0] * 8} | _NO_SKIP
    record |= {'skipped/loss': 2, 'skipped/no_signal': 3}
    record |= {
      'update/cosine': 0.8 * 3 / 6,
      'update/norm': 0.1,
      'grad/norm': 1.0,
    }
    found = measured.of(record)
    self.assertAlmostEqual(found['update/cosine'], 0.8)
    self.assertEqual((found['update/norm'], found['grad/norm']), (0.1, 1.0))
    none = measured.missing(record | {'skipped/no_signal': 6})
    self.assertEqual(none, {'update/cosine'})

  def test_update_of_length_0_has_no_direction(self):
    record = {'step': 1, 'update/norm': 0.0, 'update/cosine': 0.0}
    self.assertEqual(measured.missing(record), {'update/cosine'})

  def test_step_without_a_trained_token_has_no_ratio(self):
    record = {'step': 1, 'ratio/max': 0.0, 'ratio/mean': 0.0, 'agm/gap': 0.0}
    self.assertEqual(
      measured.missing(record | {'reward/mean': 0.5}),
      {'ratio/max', 'ratio/mean', 'agm/gap'},
    )


if __name__ == '__main__':
  absltest.main()
