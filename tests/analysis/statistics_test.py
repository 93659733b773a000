"""Intervals and tests against scipy, by hand, and by simulation of arms."""

import itertools
import math

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies
import numpy as np
from scipy import stats

from hmpo_jax.analysis import power
from hmpo_jax.analysis import statistics

_NUM_SIMULATIONS = 2000
_DIFFERENCES = np.array([0.03, -0.01, 0.02, 0.05, -0.02, 0.01, 0.04, 0.06])
_INF = math.inf

_samples = strategies.lists(
  strategies.integers(-1000, 1000), min_size=2, max_size=9
)


def _arms(n, collapsed, gain=0.0, sd=0.02):
  """[2, simulations, n]: arms that share the effect of a seed."""
  rng = np.random.default_rng(0)
  shape = (2, _NUM_SIMULATIONS, n)
  arms = 0.03 * rng.standard_normal(shape[1:]) + sd * rng.standard_normal(shape)
  arms -= 0.5 * (rng.random(shape) < collapsed)
  arms[0] += gain
  return arms


def _coverage(intervals, value=0.0):
  return np.mean([low <= value <= high for _, low, high, _ in intervals])


class MeanIntervalTest(parameterized.TestCase):
  def test_agrees_with_scipy(self):
    expected = stats.ttest_1samp(_DIFFERENCES, 0).confidence_interval(0.9)
    found = statistics.mean_interval(_DIFFERENCES, 0.1)
    np.testing.assert_allclose(found[1:3], expected, rtol=1e-12)
    self.assertAlmostEqual(found.mean, _DIFFERENCES.mean())
    self.assertEqual(found.n, 8)

  @parameterized.parameters(
    statistics.mean_interval, statistics.paired_interval
  )
  def test_degenerate(self, interval):
    self.assertEqual(interval([2.0]), (2, -_INF, _INF, 1))
    self.assertEqual(interval([])[1:], (-_INF, _INF, 0))
    self.assertTrue(math.isnan(interval([]).mean))
    # The mean of ten times .1 is not .1 in floating point.
    self.assertEqual(interval([0.1] * 10), (0.1, 0.1, 0.1, 10))
    for value in (math.nan, _INF):
      found = interval([1.0, value, 3.0, 4.0, 5.0, 6.0, 7.0])
      self.assertTrue(np.isnan(found[:3]).all())
      self.assertEqual(found.n, 7)

  @parameterized.parameters(
    statistics.mean_interval, statistics.paired_interval
  )
  def test_refuses(self, interval):
    for alpha in (0.0, 1.0, math.nan):
      with self.assertRaisesRegex(ValueError, 'alpha must be between'):
        interval([1.0, 2.0], alpha)
    with self.assertRaisesRegex(ValueError, r'shape \[n\]'):
      interval([[1.0, 2.0]])


class BoundsTest(parameterized.TestCase):
  @parameterized.product(n=(3, 5, 8), shape=((0.4, 20.0), (30.0, 0.5)))
  def test_shares_have_no_impossible_interval_and_as_good_a_one(self, n, shape):
    rng = np.random.default_rng(0)
    rows = rng.beta(*shape, (_NUM_SIMULATIONS, n))
    mean = shape[0] / sum(shape)
    free = [statistics.mean_interval(row) for row in rows]
    found = [statistics.mean_interval(row, bounds=(0.0, 1.0)) for row in rows]
    self.assertTrue(any(low < 0 or high > 1 for _, low, high, _ in free))
    for value, low, high, _ in found:
      self.assertTrue(0 <= low <= value <= high <= 1)
    self.assertEqual(_coverage(found, mean), _coverage(free, mean))

  def test_a_difference_of_shares_is_within_1(self):
    found = statistics.paired_interval([0.9, 0.1, 0.6], bounds=(-1.0, 1.0))
    free = statistics.paired_interval([0.9, 0.1, 0.6])
    self.assertGreater(free.high, 1)
    self.assertEqual(found, free._replace(high=1.0))

  def test_rounding_beyond_a_bound_is_kept(self):
    found = statistics.mean_interval([1 + 1e-12, 1 + 2e-12], bounds=(0.0, 1.0))
    self.assertEqual(found.high, found.mean)


class PairedIntervalTest(parameterized.TestCase):
  @parameterized.product(n=(8, 10), collapsed=(0.0, 0.2), alpha=(0.05, 0.1))
  def test_two_equal_arms(self, n, collapsed, alpha):
    first, second = _arms(n, collapsed)
    found = _coverage(
      statistics.paired_interval(row, alpha) for row in first - second
    )
    self.assertBetween(found, 1 - alpha - 0.02, 1 - alpha + 0.02)

  @parameterized.parameters((10, 300), (30, 10))
  def test_normal_arms_give_the_width_of_student(self, n, num_samples):
    rows = np.random.default_rng(0).standard_normal((num_samples, n))
    ratios = []
    for row in rows:
      _, low, high, _ = statistics.paired_interval(row)
      _, t_low, t_high, _ = statistics.mean_interval(row)
      ratios.append((high - low) / (t_high - t_low))
    self.assertBetween(np.mean(ratios), 0.97, 1.03)

  def test_ends_by_hand(self):
    # Of 6 seeds only a change of all signs, or none, has p = 2 / 64 <= .05: the
    # ends are the smallest and the largest difference.
    found = statistics.paired_interval([3.0, 1.0, 4.0, 1.5, 9.0, 2.0])
    self.assertEqual(found[1:3], (1, 9))
    # At alpha 4 / 64 = .0625 one more subset mean is cut off, {1, 1.5}, {4, 9}.
    found = statistics.paired_interval([3.0, 1.0, 4.0, 1.5, 9.0, 2.0], 0.0625)
    self.assertEqual(found[1:3], (1.25, 6.5))

  @hypothesis.given(_samples, strategies.sampled_from((0.05, 0.1, 0.3)))
  @hypothesis.settings(deadline=None, derandomize=True)
  def test_holds_what_the_test_keeps(self, sample, alpha):
    hypothesis.assume(power.least_p(len(sample)) <= alpha)
    hypothesis.assume(np.ptp(sample) > 0)
    _, low, high, _ = statistics.paired_interval(sample, alpha)
    p = lambda mean: statistics.sign_flip(np.subtract(sample, mean))
    for end, outward in ((low, -1), (high, 1)):
      self.assertGreater(p(end), alpha)
      self.assertLessEqual(p(end + outward * 1e-3), alpha)

  @parameterized.parameters(24, 40)
  def test_holds_what_the_test_keeps_where_flips_are_drawn(self, n):
    sample = np.random.default_rng(n).exponential(size=n)
    _, low, high, _ = statistics.paired_interval(sample)
    for end, outward in ((low, -1), (high, 1)):
      self.assertGreater(statistics.sign_flip(sample - end), 0.05)
      self.assertLessEqual(
        statistics.sign_flip(sample - end - outward * 1e-6), 0.05
      )

  @hypothesis.given(_samples)
  @hypothesis.settings(deadline=None, derandomize=True)
  def test_moves_with_the_values(self, sample):
    _, low, high, _ = statistics.paired_interval(sample)
    moved = statistics.paired_interval(3 - 2 * np.array(sample))
    np.testing.assert_allclose(moved[1:3], (3 - 2 * high, 3 - 2 * low))

  def test_too_few_seeds_for_the_test(self):
    self.assertEqual(
      statistics.paired_interval(_DIFFERENCES[:5]),
      statistics.mean_interval(_DIFFERENCES[:5]),
    )
    self.assertNotEqual(
      statistics.paired_interval(_DIFFERENCES[:6]),
      statistics.mean_interval(_DIFFERENCES[:6]),
    )


class SignFlipTest(parameterized.TestCase):
  @parameterized.parameters(2, 5, 8, 11)
  def test_agrees_with_scipy(self, n):
    sample = np.random.default_rng(n).normal(0.5, 1, n).round(1)
    expected = stats.permutation_test(
      (sample,), np.sum, permutation_type='samples', n_resamples=_INF
    )
    self.assertAlmostEqual(
      statistics.sign_flip(sample), expected.pvalue, places=12
    )

  def test_by_hand(self):
    # |1 + 2 - 3| is 0; all choices reach it.
    self.assertEqual(statistics.sign_flip([1, 2, -3]), 1)
    # Of 8 choices only +++ and --- reach 6.
    self.assertEqual(statistics.sign_flip([1, 2, 3]), 2 / 8)
    # A sum of 4 is reached by +++, -++ and their negatives.
    self.assertEqual(statistics.sign_flip([-1, 2, 3]), 4 / 8)
    # .1 + .2 - .3 is not 0 in floating point, and -.1 - .2 + .3 no less.
    self.assertEqual(statistics.sign_flip([0.1, 0.2, -0.3]), 1)

  def test_zeros(self):
    self.assertEqual(
      statistics.sign_flip([1, 2, 3, 0, 0]), statistics.sign_flip([1, 2, 3])
    )
    self.assertEqual(statistics.sign_flip([0.0, 0.0]), 1)
    self.assertEqual(statistics.sign_flip([0.0] * 30), 1)

  def test_too_little(self):
    self.assertEqual(statistics.sign_flip([5.0]), 1)
    self.assertTrue(math.isnan(statistics.sign_flip([])))
    self.assertTrue(math.isnan(statistics.sign_flip([1.0, math.nan])))

  def test_drawn_flips_agree_with_all(self):
    sample = np.random.default_rng(0).normal(0.5, 1, 20)
    exact = statistics.sign_flip(sample)
    self.assertBetween(exact, 0.01, 0.2)
    self.assertEqual(exact * 2**19 % 1, 0)
    # Two zeros change nothing, but 22 seeds are not enumerated.
    drawn = statistics.sign_flip(np.append(sample, [0, 0]))
    self.assertNotEqual(drawn, exact)
    self.assertAlmostEqual(drawn, exact, delta=4 * (exact / 2**17) ** 0.5)
    self.assertEqual(drawn, statistics.sign_flip(np.append(sample, [0, 0])))
    # Never 0.
    self.assertEqual(
      statistics.sign_flip(np.arange(1.0, 60.0)), 1 / (1 + 2**17)
    )

  @parameterized.parameters(0.0, 0.2)
  def test_level(self, collapsed):
    first, second = _arms(10, collapsed)
    p = np.array([statistics.sign_flip(row) for row in first - second])
    for alpha in (0.05, 0.2):
      self.assertAlmostEqual(np.mean(p <= alpha), alpha, delta=0.02)

  def test_finds_a_planted_difference(self):
    # 2 standard deviations of the differences, 10 seeds: nearly always.
    first, second = _arms(10, 0.0, gain=2 * 0.02 * 2**0.5)
    p = [statistics.sign_flip(row) for row in first - second]
    self.assertGreater(np.mean(np.less_equal(p, 0.05)), 0.99)


class ContrastsTest(parameterized.TestCase):
  def test_holm_by_hand(self):
    # .01 x 3, .02 x 2, .4 x 1.
    np.testing.assert_allclose(
      statistics.holm([0.4, 0.01, 0.02]), [0.4, 0.03, 0.04]
    )
    # .03 x 2 = .06 is more than .05.
    np.testing.assert_allclose(statistics.holm([0.03, 0.05]), [0.06, 0.06])
    np.testing.assert_allclose(statistics.holm([0.9, 0.8]), [1, 1])

  @hypothesis.given(
    strategies.lists(strategies.floats(0, 1), min_size=1, max_size=5)
  )
  @hypothesis.settings(deadline=None, derandomize=True)
  def test_holm_closes_bonferroni(self, p):
    # Rejected is what every set of contrasts that holds it rejects.
    expected = np.zeros(len(p))
    for chosen in itertools.product((False, True), repeat=len(p)):
      if any(chosen):
        bonferroni = min(1, sum(chosen) * np.min(np.array(p)[list(chosen)]))
        expected = np.where(chosen, np.maximum(expected, bonferroni), expected)
    np.testing.assert_allclose(statistics.holm(p), expected)

  def test_holm_counts_what_was_not_tested(self):
    found = statistics.holm([0.01, math.nan, 0.02])
    np.testing.assert_allclose(found, [0.03, math.nan, 0.04])
    self.assertEqual(statistics.holm([]).shape, (0,))
    with self.assertRaisesRegex(ValueError, '0..1'):
      statistics.holm([0.5, 1.1])

  @parameterized.named_parameters(
    ('different', (0.01, 0.09), (0.02, 0.08), 0.04, 'different'),
    ('below', (-0.09, -0.01), (-0.08, -0.02), 0.04, 'different'),
    ('adjusted', (0.01, 0.09), (0.02, 0.08), 0.06, 'undecided'),
    ('edge', (0.01, 0.09), (0.02, 0.08), 0.05, 'different'),
    (
      'equivalent',
      (-0.03, 0.02),
      (-0.02, 0.01),
      0.9,
      'equivalent within +-0.02',
    ),
    ('too wide', (-0.03, 0.03), (-0.01, 0.021), 0.9, 'undecided'),
    ('both', (0.005, 0.012), (0.006, 0.011), 0.01, 'different'),
    ('0 is held', (-0.001, 0.09), (0.03, 0.08), 0.01, 'undecided'),
    (
      'untested',
      (-0.03, 0.02),
      (-0.02, 0.01),
      math.nan,
      'equivalent within +-0.02',
    ),
    ('unknown', (-_INF, _INF), (-_INF, _INF), math.nan, 'undecided'),
    ('missing', (math.nan,) * 2, (math.nan,) * 2, math.nan, 'undecided'),
  )
  def test_verdict(self, wide, narrow, p, expected):
    found = statistics.verdict(
      statistics.Interval(0.0, *wide, 10),
      statistics.Interval(0.0, *narrow, 10),
      p,
      margin=0.02,
      alpha=0.05,
    )
    self.assertEqual(found, expected)

  def test_verdicts_on_simulated_arms(self):

    def shares(gain, sd):
      first, second = _arms(10, 0.0, gain, sd)
      found = [_verdict(row) for row in (first - second)[:500]]
      return [
        np.mean([verdict.startswith(word) for verdict in found])
        for word in ('different', 'equivalent', 'undecided')
      ]

    self.assertGreater(shares(0.05, 0.02)[0], 0.97)
    self.assertGreater(shares(0.0, 0.005)[1], 0.9)
    self.assertGreater(shares(0.0, 0.05)[2], 0.9)
    # A difference as large as the margin is equivalent in 5 % at most.
    self.assertLess(shares(0.02, 0.01)[1], 0.07)


class ArmsTest(parameterized.TestCase):
  def test_pairing(self):
    # Variances 1, 1 and, of 0, 1, -1, 1.
    first, second = [0.0, 2.0, 1.0], [0.0, 1.0, 2.0]
    self.assertAlmostEqual(statistics.pairing_gain(first, second), 2)
    self.assertAlmostEqual(statistics.correlation(first, second), 0.5)
    self.assertAlmostEqual(
      statistics.pairing_gain(first, np.negative(second)), 2 / 3
    )

  def test_pairing_of_simulated_arms(self):
    first, second = _arms(2000, 0.0)[:, 0]
    # (.03^2 + .02^2) / .02^2; correlation .03^2 / (.03^2 + .02^2).
    self.assertAlmostEqual(
      statistics.pairing_gain(first, second), 3.25, delta=0.2
    )
    self.assertAlmostEqual(
      statistics.correlation(first, second), 9 / 13, delta=0.03
    )

  def test_pairing_degenerate(self):
    shifted = np.array([0.1, 0.7, 0.4])
    self.assertEqual(statistics.pairing_gain(shifted, shifted + 0.2), _INF)
    for arms in (([1.0, 1.0], [2.0, 2.0]), ([1.0], [2.0]), ([], [])):
      self.assertTrue(math.isnan(statistics.pairing_gain(*arms)))
      self.assertTrue(math.isnan(statistics.correlation(*arms)))
    for function in (statistics.pairing_gain, statistics.correlation):
      with self.assertRaisesRegex(ValueError, 'same seeds'):
        function([1.0, 2.0], [1.0])

  def test_worst_quartile(self):
    self.assertEqual(
      statistics.worst_quartile_mean([8, 1, 7, 2, 6, 3, 5, 4]), 1.5
    )
    # 3 of 10, since a quarter is rounded up.
    self.assertEqual(statistics.worst_quartile_mean(range(10)), 1)
    self.assertEqual(statistics.worst_quartile_mean([3, 2]), 2)
    self.assertTrue(math.isnan(statistics.worst_quartile_mean([])))


def _verdict(differences):
  return statistics.verdict(
    statistics.paired_interval(differences, 0.05),
    statistics.paired_interval(differences, 0.1),
    statistics.sign_flip(differences),
    margin=0.02,
    alpha=0.05,
  )


if __name__ == '__main__':
  absltest.main()
