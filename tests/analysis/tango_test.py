"""Paired yes or no: by hand, as published, by search, and by enumeration."""

import itertools
import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import optimize
from scipy import stats

from hmpo_jax.analysis import proportions
from hmpo_jax.analysis import statistics


class TangoTest(parameterized.TestCase):
  @parameterized.parameters((0, 3, 0.25), (1, 5, 2 * 7 / 64), (2, 2, 1.0))
  def test_p_by_hand(self, first_only, second_only, expected):
    # Both agree on the last two seeds.
    first = [True] * first_only + [False] * second_only + [True, False]
    second = [False] * first_only + [True] * second_only + [True, False]
    self.assertAlmostEqual(proportions.paired_binary(first, second), expected)

  def test_p_is_that_of_flipped_signs(self):
    rng = np.random.default_rng(0)
    for _ in range(20):
      first, second = rng.random((2, 10)) < [[0.3], [0.6]]
      self.assertAlmostEqual(
        proportions.paired_binary(first, second),
        statistics.sign_flip(first.astype(int) - second),
      )

  def test_degenerate(self):
    self.assertEqual(proportions.paired_binary([True, False], [True, False]), 1)
    self.assertTrue(math.isnan(proportions.paired_binary([], [])))
    nothing = proportions.binary_difference([], [])
    self.assertTrue(math.isnan(nothing.mean))
    self.assertEqual(nothing[1:], (-1, 1, 0))

  def test_refuses(self):
    for function in (proportions.paired_binary, proportions.binary_difference):
      with self.assertRaisesRegex(ValueError, 'same seeds'):
        function([True], [True, False])
      with self.assertRaisesRegex(ValueError, 'yes or no'):
        function([0.5], [1.0])
    with self.assertRaisesRegex(ValueError, 'alpha'):
      proportions.binary_difference([True], [False], 1.0)

  def test_published_interval(self):
    # Airway hyper-responsiveness before and after a transplantation, in
    # "Recommended tests and confidence intervals for paired binomial
    # proportions" by Fagerland, Lydersen and Laake (2014).
    found = _interval_of_counts(1, 7, 21)
    np.testing.assert_allclose(found[1:3], (-0.517, -0.026), atol=6e-4)

  @parameterized.parameters(
    (0, 0, 10), (3, 0, 10), (2, 5, 8), (4, 4, 20), (9, 1, 10), (1, 6, 40)
  )
  def test_score_at_the_ends(self, first_only, second_only, n):
    found = _interval_of_counts(first_only, second_only, n, 0.1)
    self.assertAlmostEqual(found.mean, (first_only - second_only) / n)
    quantile = stats.norm.isf(0.05)
    for end, sign in ((found.low, 1), (found.high, -1)):
      score = _score_by_search(end, first_only, second_only, n)
      self.assertAlmostEqual(score, sign * quantile, delta=1e-4)
    mirrored = _interval_of_counts(second_only, first_only, n, 0.1)
    np.testing.assert_allclose((-mirrored.high, -mirrored.low), found[1:3])

  def test_all_differ(self):
    found = _interval_of_counts(10, 0, 10)
    self.assertEqual((found.mean, found.high), (1, 1))
    self.assertBetween(found.low, 0.3, 0.6)
    self.assertEqual(_interval_of_counts(0, 10, 10)[:2], (-1, -1))
    self.assertEqual(_interval_of_counts(1, 0, 1)[2], 1)

  @parameterized.parameters(8, 10)
  def test_coverage_over_independent_arms(self, n):
    counts = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    _, low, high, _ = np.transpose([_interval_of_counts(*x, n) for x in counts])
    outcomes = [(b, c, n - b - c) for b, c in counts]
    for first, second in itertools.product(
      (0.0, 0.1, 0.2, 0.35, 0.5), repeat=2
    ):
      cells = first * (1 - second), second * (1 - first)
      chances = stats.multinomial.pmf(outcomes, n, [*cells, 1 - sum(cells)])
      # At a difference of 0 the score of equal counts is 0, but for rounding.
      held = (low - 1e-9 <= first - second) & (first - second <= high + 1e-9)
      self.assertGreater(np.sum(chances[held]), 0.945)


def _interval_of_counts(first_only, second_only, n, alpha=0.05):
  seeds = np.arange(n)
  first = seeds < first_only
  second = ~first & (seeds < first_only + second_only)
  return proportions.binary_difference(first, second, alpha)


def _score_by_search(difference, b, c, n):
  """Tango's score with the likelihood maximised by search."""

  def negative(chance):
    cells = [chance + difference, chance, 1 - 2 * chance - difference]
    return -stats.multinomial.logpmf([b, c, n - b - c], n, cells)

  bounds = max(0, -difference), (1 - difference) / 2
  chance = optimize.minimize_scalar(
    negative, bounds=bounds, method='bounded', options={'xatol': 1e-12}
  ).x
  variance = 2 * chance + difference - difference**2
  return (b - c - n * difference) / math.sqrt(n * variance)


if __name__ == '__main__':
  absltest.main()
