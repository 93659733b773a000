"""The figure of token weights: what it draws is n w_t."""

import pathlib

from absl.testing import absltest
import numpy as np
import pandas

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
        token_weights.relative(_X, _MASK, p), expected, rtol=1e-6
      )

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

  def test_shift_over_spread_by_hand(self):
    # x = +-1 around 0 and around 2; the third row is empty. sigma = 1, n = 2;
    # the shift is log cosh 1, the spread sqrt 2.
    x = np.array([[1.0, -1.0], [3.0, 1.0], [9.0, 9.0]])
    found = token_weights.mask_shift(x, x < 9)
    shift = np.log(np.cosh(1))
    expected = {
      'sigma': 1,
      'law': 2**-0.5,
      'measured': shift / 2**0.5,
      'shift_over_law': 2 * shift,
      'spread_over_law': 2,
    }
    self.assertEqual(set(found), set(expected))
    for name, value in expected.items():
      self.assertAlmostEqual(found[name], value, msg=name)

  def test_documentation_tells_what_the_committed_batch_shows(self):
    root = pathlib.Path(__file__).parents[2]
    table = pandas.read_csv(root / 'results/token_weights/token_weights.csv')
    x = np.array(
      [row.to_numpy() for _, row in table.groupby('row')['log_ratio_nats']]
    )
    found = token_weights.mask_shift(x, np.ones(x.shape, bool))
    text = ' '.join((root / 'docs/maths.md').read_text('utf-8').split())
    for name, words in (
      ('measured', 'finds {:.2f} where'),
      ('law', 'the law says {:.2f},'),
      ('shift_over_law', 'the shift {:.2f} times'),
      ('spread_over_law', 'the spread {:.2f} times'),
    ):
      self.assertIn(words.format(found[name]), text)


if __name__ == '__main__':
  absltest.main()
