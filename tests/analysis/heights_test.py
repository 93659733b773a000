"""Areas and drawdowns of curves, by hand."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from hmpo_jax.analysis import heights


class HeightsTest(parameterized.TestCase):
  def test_drawdown(self):
    # From 5 to 2; the fall from 6 to 4 is smaller.
    self.assertEqual(heights.max_drawdown([1, 5, 3, 2, 6, 4]), 3)
    self.assertEqual(heights.max_drawdown([1, 2, 2, 3]), 0)
    self.assertTrue(math.isnan(heights.max_drawdown([])))
    self.assertTrue(math.isnan(heights.max_drawdown([1, math.nan])))

  @parameterized.named_parameters(
    ('whole', [0, 10], [0, 1], 10, 0.5),
    ('uneven', [0, 2, 10], [0, 1, 1], 10, 0.9),
    ('carried', [0, 5], [0, 1], 10, 0.75),
    ('late', [5, 10], [1, 1], 10, 1.0),
    ('cut', [0, 10], [0, 1], 5, 0.25),
    ('one', [0], [0.3], 7, 0.3),
    ('beyond', [20, 30], [2, 4], 10, 2),
  )
  def test_area(self, steps, values, horizon, expected):
    self.assertAlmostEqual(heights.area(steps, values, horizon), expected)

  def test_area_degenerate(self):
    self.assertTrue(math.isnan(heights.area([], [], 1)))
    self.assertTrue(math.isnan(heights.area([0, 1], [0, math.nan], 1)))
    for steps in ([0, 0], [1, 0], [-1, 0], [0, math.nan]):
      with self.assertRaisesRegex(ValueError, 'steps must increase'):
        heights.area(steps, [1, 1], 1)
    with self.assertRaisesRegex(ValueError, 'horizon'):
      heights.area([0, 1], [1, 1], 0)
    with self.assertRaisesRegex(ValueError, 'same'):
      heights.area([0, 1], [1], 1)

  @parameterized.named_parameters(
    # The line from 0 to 1 over two steps, held for two, then .1 for six.
    ('held_until_the_failure', 4, 0.36),
    ('from_the_start', 0, 0.1),
    ('none', 10, 0.9),
  )
  def test_area_of_a_failed_run(self, end, expected):
    steps, values = np.array([0, 2, 6]), np.array([0.0, 1.0, 1.0])
    self.assertAlmostEqual(
      heights.scored_area(steps, values, 10, end, 0.1), expected
    )


if __name__ == '__main__':
  absltest.main()
