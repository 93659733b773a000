"""The detectors of convergence, by hand."""

from absl.testing import absltest

from hmpo_jax.run import controllers

_STEADY = {'arithmetic_history': [1.005] * 10, 'harmonic_history': [0.995] * 10}
_OPEN = {'arithmetic_history': [1.03] * 10, 'harmonic_history': [0.97] * 10}
_EMPTY: dict[str, list[float]] = {
  'arithmetic_history': [],
  'harmonic_history': [],
}


def _stop(controller, records):
  """Number of the first record that ends a run; 0 if none does."""
  for number, record in enumerate(records, start=1):
    if controller(record)['early_stop']['should_stop']:
      return number
  return 0


class FullConvergenceTest(absltest.TestCase):
  def test_steady_means_end_a_run_at_record_20(self):
    # Rates of 1 - .01 / 2 and of 1 - .06 / 2.
    stop = lambda *records: _stop(controllers.FullConvergence(), records)
    self.assertEqual(stop(*[_STEADY] * 30), 20)
    self.assertEqual(stop(*[_OPEN] * 30), 0)
    # A record at 0.97 among 20 of 0.995: the variance is 3e-5.
    self.assertEqual(stop(*[_STEADY] * 19, _OPEN, *[_STEADY] * 19), 0)
    self.assertEqual(stop(*[_STEADY] * 19, _OPEN, *[_STEADY] * 20), 40)

  def test_record_without_a_measured_step_has_no_rate(self):
    records = [_EMPTY, *[_STEADY] * 30]
    self.assertEqual(_stop(controllers.FullConvergence(), records), 21)

  def test_other_one_reads_the_clip_normalised_histories(self):
    record = _STEADY | {f'{k}_clip': v for k, v in _OPEN.items()}
    self.assertEqual(
      _stop(controllers.ClipNormalisedConvergence(), [record] * 30), 0
    )
    record = _OPEN | {f'{k}_clip': v for k, v in _STEADY.items()}
    self.assertEqual(
      _stop(controllers.ClipNormalisedConvergence(), [record] * 30), 20
    )


if __name__ == '__main__':
  absltest.main()
