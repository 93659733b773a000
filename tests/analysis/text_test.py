"""Numbers and intervals as a report shows them."""

import math

from absl.testing import absltest
from absl.testing import parameterized

from hmpo_jax.analysis import text


class MeanAndIntervalTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.5, 0.4, 0.6, '.2f', '0.50 ± 0.10'),
    (0.02, 0.0, 0.08, '.1%', '2.0% (0.0% to 8.0%)'),
    (2 / 3, 0.0943, 0.9916, '.0%', '67% (9% to 99%)'),
    # Cut by less than is shown.
    (0.9999997, 0.9999991, 1.0, '.3f', '1.000'),
    (0.0, 0.0, 0.0, '.1%', '0.0%'),
    (3.0, -math.inf, math.inf, '.1f', '3.0'),
    (3.0, math.nan, math.nan, '.1f', '3.0'),
    (math.nan, 0.0, 1.0, '.1f', '–'),
  )
  def test_shows(self, mean, low, high, form, expected):
    self.assertEqual(text.mean_and_interval(mean, low, high, form), expected)


if __name__ == '__main__':
  absltest.main()
