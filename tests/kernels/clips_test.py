"""Clip ranges: what they stop, where they lie, and widths that follow."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import clips
from tests import loss_batches
from tests import reference

_track = jax.jit(clips.track)
_one_sided = jax.jit(clips.one_sided)
_center = jax.jit(clips.center, static_argnums=3)
_TRACKING = clips.Tracking(
  rate=0.5, target_low=0.1, target_high=0.2, eps_min=1e-4, eps_max=0.5
)
_WIDTHS = clips.Widths(jnp.float32(0.2), jnp.float32(0.3))


class OneSidedTest(parameterized.TestCase):
  def test_every_side_and_sign(self):
    x = jnp.array([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 0.1, 0.1])
    advantages = jnp.array([-1.0, 0.0, 1.0, -1.0, 0.0, 1.0, 1.0, -1.0])
    clipped = _one_sided(x, advantages, -0.2, 0.3)
    np.testing.assert_array_equal(clipped.low, [1, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(clipped.high, [0, 0, 0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(clipped.stopped, clipped.low | clipped.high)
    np.testing.assert_array_equal(clipped.outside, [1, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(
      clipped.values, np.float32([-0.2, -1, -1, 1, 1, 0.3, 0.1, 0.1])
    )

  @hypothesis.settings(deadline=None, derandomize=True, max_examples=30)
  @hypothesis.given(
    strategies.floats(-3, 3, width=32),
    strategies.sampled_from([-2.0, 0.0, 1.0]),
  )
  def test_is_the_minimum_with_the_clipped_ratio(self, x, advantage):
    clipped = _one_sided(x, advantage, *clips.edges(0.2, 0.3, np.float32))
    np.testing.assert_allclose(
      np.exp(clipped.values) * advantage,
      reference.clipped(math.exp(x), advantage, 0.2, 0.3),
      rtol=1e-6,
    )

  def test_edges_are_logs_that_bfloat16_would_lose(self):
    low, high = clips.edges(3e-4, 4e-4, np.float32)
    np.testing.assert_allclose(low, -3.00045e-4, rtol=1e-6)
    np.testing.assert_allclose(high, 3.9992e-4, rtol=1e-6)
    slopes = jax.grad(lambda *eps: sum(clips.edges(*eps, np.float32)), (0, 1))(
      3e-4, 4e-4
    )
    self.assertEqual(slopes, (0, 0))


class CenterTest(parameterized.TestCase):
  # x = [0, log 4]: log M = log [5/2, 2, 8/5]; the variance is log(2)^2.
  @parameterized.parameters((1.0, 5 / 2), (0.0, 2.0), (-1.0, 8 / 5))
  def test_by_hand(self, p, mean):
    x, mask = jnp.log(jnp.array([[1.0, 4.0]])), jnp.ones((1, 2), bool)
    for name, shift in (
      ('one', 0.0),
      ('geometric', np.log(mean / 2)),
      ('unbiased', (p - 1) * np.log(2) ** 2 / 2),
    ):
      c, position = _center(x, mask, p, name)
      np.testing.assert_allclose(c, [shift], atol=2e-7)
      np.testing.assert_allclose(position, [np.log(mean) - shift], atol=3e-7)

  def test_variance_is_that_of_the_batch(self):
    # Population variances 1, 0 of one token, and none without: their mean 1/2.
    x = jnp.array([[1.0, -1.0], [3.0, np.nan], [np.nan, np.nan]])
    mask = jnp.array([[1, 1], [1, 0], [0, 0]], bool)
    c, _ = _center(
      jnp.where(mask, x, 0), mask, jnp.array([-1.0, 0.0, 1.0]), 'unbiased'
    )
    np.testing.assert_allclose(c, [-0.5, -0.25, 0], rtol=1e-6)

  def test_shift_is_bounded(self):
    x, mask = jnp.array([[20.0, -20.0]]), jnp.ones((1, 2), bool)
    for p, expected in ((50.0, 20.0), (-50.0, -20.0)):
      self.assertEqual(_center(x, mask, p, 'unbiased')[0], expected)

  @parameterized.parameters(*clips.CENTERS)
  def test_no_gradient_flows(self, name):
    batch = loss_batches.scattered()
    total = lambda x, p: sum(map(jnp.sum, clips.center(x, batch.mask, p, name)))
    for slope in jax.jit(jax.grad(total, (0, 1)))(batch.log_ratios, -1.0):
      np.testing.assert_array_equal(slope, jnp.zeros_like(slope))

  def test_unknown_center(self):
    with self.assertRaisesRegex(
      ValueError, "'two': must be one of one, geometric, un"
    ):
      clips.center(jnp.ones((1, 1)), jnp.ones((1, 1), bool), 0.0, 'two')


def _shares(*values):
  return jnp.array(values, jnp.float32)


class TrackTest(parameterized.TestCase):
  def test_by_hand(self):
    # 3/10 of all rows of two updates, 4/10 of which have A < 0: 3/4 - 1/10.
    widths = _track(
      _TRACKING,
      _WIDTHS,
      _shares(0.1, 0.2),
      _shares(0.0, 0.06),
      _shares(0.2, 0.2),
      _shares(0.1, 0.2),
    )
    np.testing.assert_allclose(
      widths.eps_low, 0.2 * np.exp(0.5 * (0.3 / 0.4 - 0.1)), rtol=1e-6
    )
    np.testing.assert_allclose(widths.eps_high, 0.3, rtol=1e-6)

  def test_follows_up_and_down_within_the_bounds(self):
    many, none, all_rows = _shares(0.5), _shares(0.0), _shares(0.5)
    up, down = _WIDTHS, _WIDTHS
    for _ in range(200):
      up, wider = _track(_TRACKING, up, many, many, all_rows, all_rows), up
      down, narrower = (
        _track(_TRACKING, down, none, none, all_rows, all_rows),
        down,
      )
      for side in range(2):
        self.assertGreaterEqual(up[side], wider[side])
        self.assertLessEqual(down[side], narrower[side])
    np.testing.assert_array_equal(up, np.float32([0.5, 0.5]))
    np.testing.assert_array_equal(down, np.float32([1e-4, 1e-4]))

  def test_rate_zero_changes_no_bit(self):
    widths = clips.Widths(*np.float32([0.123456, 0.7]))  # beyond the bound
    for shares in (_shares(0.5), _shares(np.nan), _shares(0.0)):
      moved = _track(
        _TRACKING._replace(rate=0.0), widths, shares, shares, shares, shares
      )
      np.testing.assert_array_equal(moved, widths)

  @parameterized.named_parameters(
    ('no_row_of_that_sign', (0.0, 0.0), (0.0, 0.0)),
    ('nan', (0.1, np.nan), (0.5, 0.5)),
    ('nan_count', (0.1, 0.1), (0.5, np.nan)),
    ('infinity', (np.inf, 0.1), (0.5, 0.5)),
  )
  def test_side_without_a_fraction_stays(self, clipped, signed):
    moved = _track(
      _TRACKING,
      _WIDTHS,
      _shares(*clipped),
      _shares(0.4, 0.4),
      _shares(*signed),
      _shares(0.5, 0.5),
    )
    self.assertEqual(moved.eps_low, _WIDTHS.eps_low)
    self.assertGreater(moved.eps_high, _WIDTHS.eps_high)

  def test_vmap_over_runs(self):
    shares = 4 * [_shares(0.3, 0.5)]
    move = lambda rate: _track(_TRACKING._replace(rate=rate), _WIDTHS, *shares)
    rates = jnp.array([0.0, 0.5, 2.0])
    together = jnp.stack(jax.vmap(move)(rates), axis=1)
    np.testing.assert_allclose(
      together, [jnp.stack(move(rate)) for rate in rates], rtol=1e-6
    )

  def test_orders_clip_as_much_within_widths_of_their_own(self):
    log_means, advantages = self._rows(drift=0.12)
    fixed, followed, low, high = {}, {}, {}, {}
    for p, log_mean in log_means.items():
      fixed[p], _ = self._follow(log_mean, advantages, rate=0.0)
      followed[p], (low[p], high[p]) = self._follow(log_mean, advantages, 0.5)
    # One shared range around 1: H clips more below, and less above and in all.
    self.assertGreater(fixed[-1][0], fixed[1][0])
    self.assertLess(fixed[-1][1], fixed[1][1] - 0.1)
    self.assertGreater(np.ptp([sum(sides) for sides in fixed.values()]), 0.1)
    totals = [sum(sides) for sides in followed.values()]
    np.testing.assert_allclose(totals, 0.37, atol=0.01)
    self.assertTrue(low[-1] > low[0] > low[1])
    self.assertTrue(high[-1] < high[0] < high[1])

  def test_a_side_that_cannot_reach_its_target_ends_at_the_bound(self):
    # Nothing has moved yet, and log H is about -sigma^2 on both sides.
    log_means, advantages = self._rows(drift=0.0)
    (low, high), widths = self._follow(log_means[-1], advantages, 0.5)
    self.assertAlmostEqual(low, 0.37 / 2, delta=0.01)
    self.assertLess(high, 0.1)
    self.assertEqual(widths.eps_high, np.float32(1e-4))

  def _rows(self, drift):
    """Log M_p by p of 2048 rows of 32 tokens, and their advantages.

    Log-normal ratios with mean 1, moved by `drift` nats along the advantage.
    """
    advantages = np.where(np.arange(2048) % 2, 1.0, -1.0)
    x = np.random.default_rng(0).normal(-(0.3**2) / 2, 0.3, size=(2048, 32))
    x += drift * advantages[:, None]
    geometric = np.mean(x, axis=1)
    log_means = {p: np.log(np.mean(np.exp(p * x), axis=1)) / p for p in (1, -1)}
    return log_means | {0: geometric}, advantages

  def _follow(self, log_mean, advantages, rate):
    """Shares of all rows clipped low and high, and the widths in the end."""
    tracking = clips.Tracking(rate, 0.37, 0.37, 1e-4, 0.9)
    widths = clips.Widths(jnp.float32(0.02), jnp.float32(0.02))
    signs = [
      np.mean(s, keepdims=True) for s in (advantages < 0, advantages > 0)
    ]
    for _ in range(60):
      clipped = _one_sided(
        log_mean, advantages, *clips.edges(*widths, np.float32)
      )
      sides = [np.mean(s, keepdims=True) for s in (clipped.low, clipped.high)]
      widths = _track(tracking, widths, *sides, *signs)
    return [float(side[0]) for side in sides], widths


if __name__ == '__main__':
  absltest.main()
