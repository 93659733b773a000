"""The interval of a share, against the beta distribution and by enumeration."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import stats

from hmpo_jax.analysis import proportions


class ProportionTest(parameterized.TestCase):
  @parameterized.parameters((0, 10), (3, 10), (10, 10), (7, 200))
  def test_proportion(self, successes, n):
    found = proportions.proportion_interval(successes, n, 0.1)
    self.assertEqual((found.mean, found.n), (successes / n, n))
    # The ends are where what was observed, or more extreme, has chance .05.
    low = stats.beta.ppf(0.05, successes, n - successes + 1) if successes else 0
    high = (
      stats.beta.ppf(0.95, successes + 1, n - successes)
      if (successes < n)
      else 1
    )
    np.testing.assert_allclose(found[1:3], (low, high), rtol=1e-6)

  def test_proportion_degenerate(self):
    self.assertEqual(proportions.proportion_interval(0, 0)[1:], (0, 1, 0))
    for successes, n in ((3, 2), (-1, 2), (0, -1)):
      with self.assertRaisesRegex(ValueError, '0..n'):
        proportions.proportion_interval(successes, n)

  @parameterized.parameters(3, 5, 10)
  def test_events_are_held_as_often_as_promised(self, n):
    found = [proportions.proportion_interval(k, n) for k in range(n + 1)]
    self.assertTrue(all(0 <= f.low <= f.mean <= f.high <= 1 for f in found))
    for rate in (0.05, 0.3, 0.5, 0.9):
      chances = stats.binom.pmf(range(n + 1), n, rate)
      held = [low <= rate <= high for _, low, high, _ in found]
      self.assertGreaterEqual(chances @ held, 0.95)


if __name__ == '__main__':
  absltest.main()
