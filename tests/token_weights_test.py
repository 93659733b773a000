"""The figure of token weights: what it draws is n w_t."""

from absl.testing import absltest
import numpy as np

from hmpo_jax.analysis import token_weights

# Ratios 1, 2, 4 and, in a row of one token, 8; the last row is empty.
_X = np.log(np.array([[1, 2, 4], [8, 1, 1], [1, 1, 1]], np.float32))
_MASK = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], bool)


class TokenWeightsTest(absltest.TestCase):

  def test_relative_weight_is_the_power_over_its_mean(self):
    for p, powers in ((1, [1, 2, 4]), (0, [1, 1, 1]), (-1, [4, 2, 1])):
      expected = np.array([powers, [0] * 3, [0] * 3]) / np.mean(powers)
      expected[1, 0] = 1
      np.testing.assert_allclose(
          token_weights.relative(_X, _MASK, p), expected, rtol=1e-6)

  def test_draws_every_token_once_for_each_order(self):
    left, right = token_weights.draw(_X, _MASK).axes
    self.assertLen(left.collections, len(token_weights.COLORS))
    for points in left.collections:
      np.testing.assert_allclose(points.get_offsets()[:, 0], _X[_MASK])
    self.assertLen(right.lines, len(token_weights.COLORS))
    for line in right.lines:
      # Two rows have tokens: half of them at least at 100%.
      np.testing.assert_allclose(line.get_ydata(), [0, 50, 100])
      self.assertAlmostEqual(line.get_xdata()[-1], 100, places=3)


if __name__ == '__main__':
  absltest.main()
