"""Collapses by hand, and what a ladder finds where the truth is planted."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from hmpo_jax.analysis import ladder
from hmpo_jax.analysis import statistics

_RATES = 3e-4 * 2.0 ** (np.arange(6) / 2)


class CollapseTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('falls', (0.4, 0.6, 0.6, 0.6, 0.2), 0.01, 4),
    ('one_bad_evaluation_is_half_a_fall', (0.5, 0.6, 0.6, 0.52, 0.6), 0.01, -1),
    ('rises', (0.1, 0.2, 0.3, 0.4, 0.5), 0.01, -1),
    ('within_the_margin', (0.6, 0.6, 0.56, 0.56), 0.001, -1),
    ('beyond_the_margin', (0.6, 0.6, 0.54, 0.54), 0.001, 3),
    ('within_the_noise', (0.6, 0.6, 0.5, 0.5), 0.026, -1),
    ('beyond_the_noise', (0.6, 0.6, 0.5, 0.5), 0.024, 3),
    ('below_the_start', (0.6, 0.53, 0.52, 0.52), 0.001, 2),
    ('at_once', (0.6, 0.3, 0.3), 0.001, 1),
    ('far_below_the_start', (0.6, 0.6, 0.3), 0.001, 2),
    ('too_few', (0.9,), 0.001, -1),
    ('none', (), 0.001, -1),
  )
  def test_by_hand(self, values, error, expected):
    errors = np.full(len(values), error)
    self.assertEqual(ladder.collapse(values, errors, 0.05), expected)

  def test_other_shapes_are_refused(self):
    with self.assertRaisesRegex(ValueError, r'shape \[m\]'):
      ladder.collapse([0.1, 0.2], [0.1], 0.05)

  def test_noise_alone_seldom_collapses(self):
    # A flat curve of 6 evaluations with the errors that it is told of.
    rng = np.random.default_rng(0)
    falls = [
      ladder.collapse(rng.normal(0.6, 0.02, 6), np.full(6, 0.02), 0.05) > 0
      for _ in range(2000)
    ]
    self.assertLess(np.mean(falls), 0.02)


class CriticalRungTest(parameterized.TestCase):
  @parameterized.parameters(
    ((0, 0, 1, 0), 1.0, False, False),
    ((0, 1, 1, 1), 0.0, False, False),
    ((1, 0, 0, 0), -1.0, True, False),
    ((0, 0, 0, 0), 3.0, False, True),
  )
  def test_by_hand(self, collapsed, rung, is_low, is_high):
    self.assertEqual(
      ladder.critical_rung([1.0, 2.0, 4.0, 8.0], collapsed),
      (rung, is_low, is_high),
    )

  @parameterized.parameters(([1.0],), ([2.0, 1.0],), ([[1.0, 2.0]],))
  def test_what_is_no_ladder_is_refused(self, rates):
    with self.assertRaisesRegex(ValueError, 'ascending'):
      ladder.critical_rung(rates, [False])

  def test_a_rung_is_found_and_equal_arms_are_covered(self):
    # Thresholds scatter by a quarter of a rung around one that the seed shares.
    rng = np.random.default_rng(1)
    found, covered = [], []
    for _ in range(400):
      shared = rng.uniform(1.5, 3.5, 12)
      first, same, other = (
        _rungs(shared + shift + rng.normal(0, 0.25 / math.sqrt(2), 12))
        for shift in (0, 0, 1)
      )
      found.append(statistics.sign_flip(other - first) <= 0.05 / 5)
      interval = statistics.paired_interval(same - first)
      covered.append(interval.low <= 0 <= interval.high)
    self.assertGreaterEqual(np.mean(found), 0.8)
    self.assertGreaterEqual(np.mean(covered), 0.93)


class InteractionTest(absltest.TestCase):
  def test_equal_interactions_are_covered(self):
    # Both tasks of a seed share a part of it, and so do both arms.
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(2000):
      arms = rng.normal(0, 0.04, (1, 1, 12)) + rng.normal(0, 0.02, (2, 2, 12))
      arms[:, 0] += 0.1  # a task's own effect, which both arms have
      (a, b), (c, d) = arms
      interval = statistics.paired_interval((a - b) - (c - d))
      covered.append(interval.low <= 0 <= interval.high)
    self.assertBetween(np.mean(covered), 0.93, 0.97)


class HalfCollapseTest(parameterized.TestCase):
  def test_by_hand(self):
    # Thresholds at 2^.5 (three seeds), 2^1.5 (four) and 2^2.5 (three).
    first = [1] * 3 + [2] * 4 + [3] * 3
    collapsed = np.arange(4)[None] >= np.array(first)[:, None]
    result = ladder.half_collapse([1.0, 2.0, 4.0, 8.0], collapsed)
    # Of ten the sign test keeps the second to the ninth: from the rung below
    # the one to that above the other.
    np.testing.assert_allclose(result, (2**1.5, 1, 2**3, 10))

  def test_a_ladder_that_is_too_short_has_no_end(self):
    rates = [1.0, 2.0]
    never = ladder.half_collapse(rates, np.zeros((8, 2)))
    self.assertEqual(never, (math.inf, 2, math.inf, 8))
    always = ladder.half_collapse(rates, np.ones((8, 2)))
    self.assertEqual(always, (0, 0, 1, 8))
    few = ladder.half_collapse(rates, [[0, 1]] * 3)
    self.assertEqual(few, (2**0.5, 0, math.inf, 3))
    none = ladder.half_collapse(rates, np.zeros((0, 2)))
    self.assertTrue(math.isnan(none.mean))
    split = ladder.half_collapse(rates, [[0, 0]] * 3 + [[1, 1]] * 3)
    self.assertTrue(math.isnan(split.mean))
    self.assertEqual(split[1:], (0, math.inf, 6))

  def test_its_interval_holds_the_median(self):
    rng = np.random.default_rng(2)
    rates = 2.0 ** np.arange(0, 6, 0.5)
    for median, deviation in ((3, 1), (3.1, 0.5), (3.1, 0.05), (3.25, 0.2)):
      held = []
      for _ in range(400):
        thresholds = 2.0 ** rng.normal(median, deviation, 12)
        result = ladder.half_collapse(rates, rates >= thresholds[:, None])
        held.append(result.low <= 2**median <= result.high)
      self.assertGreaterEqual(np.mean(held), 0.93)


def _rungs(thresholds):
  """Critical rungs, in rungs, of seeds that collapse above a threshold."""
  return np.array(
    [
      2 * ladder.critical_rung(_RATES, np.arange(6) >= threshold).rung
      for threshold in thresholds
    ]
  )


if __name__ == '__main__':
  absltest.main()
