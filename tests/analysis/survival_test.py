"""Times to a target: by hand, against scipy, and by simulation."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies
import numpy as np
from scipy import stats

from hmpo_jax.analysis import statistics
from hmpo_jax.analysis import survival

_STEPS = [0, 10, 20, 30, 40]

_runs = strategies.lists(
  strategies.tuples(strategies.integers(0, 9), strategies.booleans()),
  min_size=1,
  max_size=12,
)


class TimeToTargetTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('the first of two', [0.1, 0.5, 0.9, 0.9, 0.1], 2, (20, True)),
    ('not one alone', [0.1, 0.9, 0.5, 0.9, 0.9], 2, (30, True)),
    ('one is enough', [0.1, 0.9, 0.5, 0.9, 0.9], 1, (10, True)),
    ('at the target', [0.8, 0.8, 0, 0, 0], 2, (0, True)),
    ('only at the end', [0.1, 0.1, 0.1, 0.1, 0.9], 2, (40, False)),
    ('never', [0.1, 0.1, 0.1, 0.1, 0.1], 1, (40, False)),
    ('three', [0.9, 0.9, 0.1, 0.9, 0.9], 3, (40, False)),
    ('not a number', [0.9, math.nan, 0.9, 0.9, 0.9], 2, (20, True)),
    ('more than there are', [0.9] * 5, 6, (40, False)),
  )
  def test_by_hand(self, values, consecutive, expected):
    found = survival.time_to_target(_STEPS, values, 0.8, consecutive)
    self.assertEqual(found, expected)

  def test_failed_runs_are_censored_at_the_horizon(self):
    self.assertEqual(
      survival.time_to_target([0, 10], [0.1, 0.9], 0.8, horizon=100),
      (100, False),
    )
    self.assertEqual(
      survival.time_to_target([0, 10], [0.9, 0.9], 0.8, horizon=100), (0, True)
    )

  def test_without_evaluations(self):
    self.assertEqual(survival.time_to_target([], [], 0.8), (0, False))
    self.assertEqual(
      survival.time_to_target([], [], 0.8, horizon=9), (9, False)
    )

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'shape'):
      survival.time_to_target([0, 1], [1], 0.8)
    for steps in ([1, 1], [0, math.nan]):
      with self.assertRaisesRegex(ValueError, 'steps must increase'):
        survival.time_to_target(steps, [1, 1], 0.8)
    with self.assertRaisesRegex(ValueError, 'consecutive'):
      survival.time_to_target([0, 1], [1, 1], 0.8, consecutive=0)


class KaplanMeierTest(parameterized.TestCase):
  def test_by_hand(self):
    # 5 at risk; one of 5 reaches at 2, none of 4 at 3, two of 3 at 4.
    times, share = survival.kaplan_meier(
      [4, 2, 4, 3, 6], [True, True, True, False, False]
    )
    np.testing.assert_array_equal(times, [0, 2, 3, 4, 6])
    np.testing.assert_allclose(share, [1, 4 / 5, 4 / 5, 4 / 15, 4 / 15])

  def test_censored_runs_are_at_risk_when_others_reach(self):
    _, share = survival.kaplan_meier([2, 2], [True, False])
    np.testing.assert_array_equal(share, [1, 0.5])

  @hypothesis.given(_runs)
  @hypothesis.settings(deadline=None, derandomize=True)
  def test_agrees_with_scipy(self, runs):
    times, reached = np.array(runs).T
    data = stats.CensoredData.right_censored(times, reached == 0)
    expected = stats.ecdf(data).sf
    knots, share = survival.kaplan_meier(times, reached)
    at = np.arange(0, 10, 0.5)
    found = share[np.searchsorted(knots, at, 'right') - 1]
    np.testing.assert_allclose(found, expected.evaluate(at), atol=1e-12)

  def test_degenerate(self):
    times, share = survival.kaplan_meier([], [])
    np.testing.assert_array_equal((times, share), ([0], [1]))
    _, share = survival.kaplan_meier([3, 5], [False, False])
    np.testing.assert_array_equal(share, [1, 1, 1])
    # Reached at once: the curve falls at 0.
    times, share = survival.kaplan_meier([0, 5], [True, True])
    np.testing.assert_array_equal(times, [0, 0, 5])
    np.testing.assert_array_equal(share, [1, 0.5, 0])

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'shape'):
      survival.kaplan_meier([1, 2], [True])
    for time in (-1, math.nan):
      with self.assertRaisesRegex(ValueError, 'negative'):
        survival.kaplan_meier([time], [True])


class RestrictedMeanTest(parameterized.TestCase):
  def test_by_hand(self):
    # 1 until 1, 3/4 until 3, 3/8 until 5; censored at 2 and 4.
    times, reached = [1, 2, 3, 4], [True, False, True, False]
    found = survival.restricted_mean(times, reached, 5)
    self.assertAlmostEqual(found.mean, 1 + 2 * 3 / 4 + 2 * 3 / 8)
    self.assertEqual(found.n, 4)
    # Areas beyond 1 and 3: 2.25 and .75; 1 of 4 and 1 of 2 reach there.
    variance = (2.25**2 / (4 * 3) + 0.75**2 / (2 * 1)) * 4 / 3
    half = stats.t.isf(0.25, 3) * variance**0.5
    found = survival.restricted_mean(times, reached, 5, alpha=0.5)
    np.testing.assert_allclose(found[1:3], (3.25 - half, 3.25 + half))

  @hypothesis.given(_runs, strategies.integers(1, 12))
  @hypothesis.settings(deadline=None, derandomize=True)
  def test_is_the_mean_where_none_is_censored_early(self, runs, horizon):
    times = np.array([time for time, _ in runs])
    hypothesis.assume(len(runs) > 1)
    reached = times < horizon  # the others are censored at the horizon
    found = survival.restricted_mean(times, reached, horizon)
    expected = statistics.mean_interval(np.minimum(times, horizon))
    self.assertAlmostEqual(found.mean, expected.mean)
    self.assertAlmostEqual(found.low, max(expected.low, 0))
    self.assertAlmostEqual(found.high, min(expected.high, horizon))

  def test_what_comes_after_the_horizon_changes_nothing(self):
    times, reached = [1.0, 4.0, 7.0, 9.0], [True, True, True, False]
    found = survival.restricted_mean(times, reached, 5)
    other = survival.restricted_mean([1, 4, 5, 5], [1, 1, 0, 0], 5)
    self.assertEqual(found, other)

  def test_early_censoring_is_no_success_and_no_failure(self):
    # A run that ended at 1 tells nothing more: as if it weren't there.
    early = survival.restricted_mean([1, 4, 8, 10], [0, 1, 1, 0], 10)
    without = survival.restricted_mean([4, 8, 10], [1, 1, 0], 10)
    self.assertAlmostEqual(early.mean, without.mean)
    self.assertEqual(early.n, 4)

  @parameterized.parameters(10, 20)
  def test_coverage(self, n):
    rng = np.random.default_rng(0)
    # Exponential times of mean 100; some runs end early.
    times = rng.exponential(100, (2000, n))
    ends = np.where(rng.random(times.shape) < 0.2, rng.uniform(0, 150), 150)
    found = [
      survival.restricted_mean(np.minimum(time, end), time <= end, 150)
      for time, end in zip(times, ends)
    ]
    mean = 100 * (1 - math.exp(-1.5))
    covered = np.mean([row.low <= mean <= row.high for row in found])
    self.assertBetween(covered, 0.93, 0.97)
    self.assertAlmostEqual(np.mean([row.mean for row in found]), mean, delta=1)

  def test_degenerate(self):
    self.assertEqual(
      survival.restricted_mean([5, 5, 5], [False] * 3, 5), (5, 5, 5, 3)
    )
    self.assertEqual(
      survival.restricted_mean([2, 2], [True] * 2, 5)[:3], (2, 2, 2)
    )
    self.assertEqual(survival.restricted_mean([2], [True], 5), (2, 0, 5, 1))
    nothing = survival.restricted_mean([], [], 5)
    self.assertTrue(math.isnan(nothing.mean))
    self.assertEqual(nothing[1:], (0, 5, 0))

  def test_refuses(self):
    for horizon in (0, math.nan):
      with self.assertRaisesRegex(ValueError, 'horizon'):
        survival.restricted_mean([1], [True], horizon)
    for alpha in (0, 1, math.nan):
      with self.assertRaisesRegex(ValueError, 'alpha'):
        survival.restricted_mean([1], [True], 5, alpha)
    with self.assertRaisesRegex(ValueError, 'shape'):
      survival.restricted_mean([1, 2], [True], 5)


if __name__ == '__main__':
  absltest.main()
