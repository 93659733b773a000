"""What seeds can show, against scipy and by simulation of arms."""

import itertools
import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import stats

from hmpo_jax.analysis import power
from hmpo_jax.analysis import statistics


class PowerTest(parameterized.TestCase):
  def test_smallest_detectable_is_what_the_power_of_the_t_test_says(self):
    for n, num_contrasts, chance in itertools.product(
      (3, 8, 10, 30), (1, 4), (0.5, 0.8, 0.95)
    ):
      effect = power.smallest_detectable(
        2.0, n, 0.05, num_contrasts, power=chance
      )
      threshold = stats.t.isf(0.05 / num_contrasts / 2, n - 1)
      shift = effect / 2 * n**0.5
      found = stats.nct.sf(threshold, n - 1, shift)
      found += stats.nct.cdf(-threshold, n - 1, shift)
      self.assertAlmostEqual(found, chance, delta=1e-4)

  @parameterized.parameters(
    (0.5, 34, 1),
    (0.8, 15, 1),
    (1.0, 10, 1),
    (1.5, 6, 1),
    (0.5, 57, 9),
    (0.8, 25, 9),
    (1.0, 17, 9),
    (1.5, 10, 9),
  )
  def test_seeds_that_are_needed(self, effect, n, num_contrasts):
    detectable = lambda n: power.smallest_detectable(
      1.0, n, 0.05, num_contrasts
    )
    self.assertLessEqual(detectable(n), effect)
    self.assertGreater(detectable(n - 1), effect)

  def test_smallest_detectable_degenerate(self):
    self.assertEqual(power.smallest_detectable(1.0, 1), math.inf)
    self.assertEqual(power.smallest_detectable(0.0, 10), 0)

  def test_sign_flips_find_it_too(self):
    gain = power.smallest_detectable(0.02 * 2**0.5, 10)
    arms = 0.02 * np.random.default_rng(0).standard_normal((2, 2000, 10))
    p = [statistics.sign_flip(row) for row in arms[0] + gain - arms[1]]
    self.assertBetween(np.mean(np.less_equal(p, 0.05)), 0.76, 0.83)

  def test_least_p(self):
    for n in (1, 2, 6, 10):
      self.assertEqual(
        power.least_p(n), statistics.sign_flip(np.arange(1.0, n + 1))
      )
    self.assertEqual(power.least_p(0), 1)
    self.assertTrue(power.can_answer(6, 1))
    self.assertFalse(power.can_answer(5, 1))
    self.assertFalse(power.can_answer(7, 4))
    self.assertTrue(power.can_answer(8, 4))
    self.assertTrue(power.can_answer(3, 1, 0.25))


if __name__ == '__main__':
  absltest.main()
