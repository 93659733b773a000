"""Orders that evolve: by hand, against loops in float64, and hostile inputs."""

import contextlib
import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import chex
import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import exponents
from hmpo_jax.kernels import losses
from tests import reference

_KINDS = exponents.KINDS
_DTYPES = (np.float32,) * 4 + (np.int32, np.float32) + (np.int32,) * 3
_at_step = jax.jit(exponents.at_step)
_of_rows = jax.jit(exponents.of_rows)
_after_update = jax.jit(exponents.after_update)
_after_step = jax.jit(exponents.after_step)


def _settings(kind='fixed', **values):
  defaults = {
      'start': 2., 'end': -1., 'num_steps': 10, 'rate': .1, 'sign': 1.,
      'pull': 0., 'prior': 0., 'low': -2., 'high': 2., 'gap_low': 1.,
      'gap_high': 4., 'trend': .5, 'fast_window': 1, 'slow_window': 2,
      'step_size': .5, 'path': (3., -1., .1), 'normalize': False,
      'gap_quantiles': False
  }  # fmt: skip
  numbers = {
    k: jnp.asarray(v, bool if isinstance(v, bool) else jnp.float32)
    for k, v in (defaults | values).items()
  }
  return exponents.Settings(kind=jnp.int32(exponents.index_of(kind)), **numbers)


def _start(kind='fixed', **values):
  settings = _settings(kind, **values)
  return settings, exponents.init(settings)


class NameTest(absltest.TestCase):
  def test_index(self):
    self.assertEqual(
      [exponents.index_of(name) for name in _KINDS], list(range(7))
    )

  def test_unknown_name(self):
    with self.assertRaisesRegex(
      ValueError, "name='cos': must be fixed, .*, adaptive or replayed"
    ):
      exponents.index_of('cos')


class ScheduleTest(parameterized.TestCase):
  # From 2 to -1 over 10 rollouts; cosine at 1/3 of pi has a weight of 3/4.
  @parameterized.named_parameters(
      ('fixed', 'fixed', 10, {0: 2, 5: 2, 99: 2}),
      ('linear', 'linear', 10, {0: 2, 5: .5, 9: -.7, 10: -1, 11: -1, 99: -1}),
      ('cosine', 'cosine', 10, {0: 2, 5: .5, 10: -1, 11: -1, 99: -1}),
      ('cosine_third', 'cosine', 3, {1: 1.25, 2: -.25, 3: -1}),
      ('linear_at_once', 'linear', 0, {0: 2, 1: -1}),
      ('cosine_at_once', 'cosine', 1, {0: 2, 1: -1}),
      ('learnable', 'learnable', 10, {0: 2, 5: 2, 99: 2}),
      ('matched', 'matched', 10, {0: 2, 99: 2}),
      ('adaptive', 'adaptive', 10, {0: 2, 99: 2}),
      ('replayed', 'replayed', 10, {0: 3, 1: -1, 2: .1, 3: .1, 99: .1}),
  )  # fmt: skip
  def test_by_hand(self, kind, num_steps, expected):
    settings, state = _start(kind, num_steps=num_steps)
    for step, p in expected.items():
      value = _at_step(settings, state, jnp.int32(step)).p
      np.testing.assert_allclose(value, p, atol=3e-7)

  @parameterized.parameters('linear', 'cosine')
  def test_ends_are_exact_and_beyond_the_bounds(self, kind):
    settings, state = _start(kind, start=0.1, end=1e3, num_steps=500)
    first, last, later = (
      _at_step(settings, state, jnp.int32(step)).p for step in (0, 500, 9999)
    )
    self.assertEqual((first, last, later), (np.float32(0.1), 1e3, 1e3))

  @parameterized.parameters('linear', 'cosine')
  def test_falls_monotonically(self, kind):
    settings, state = _start(kind, num_steps=300)
    steps = jnp.arange(301)
    values = jax.vmap(_at_step, (None, None, 0))(settings, state, steps).p
    self.assertTrue(np.all(np.diff(values) < 0))

  @parameterized.parameters('learnable', 'matched', 'adaptive')
  def test_other_kinds_keep_what_they_have(self, kind):
    settings, state = _start(kind)
    state = state._replace(p=jnp.float32(0.3))
    chex.assert_trees_all_equal(_at_step(settings, state, jnp.int32(4)), state)

  def test_replay_has_the_bits_of_its_path(self):
    path = np.random.default_rng(9).normal(size=7).astype(np.float32)
    settings, state = _start('replayed', path=path)
    for step in (0, 3, 6, 7):
      p = _at_step(
        settings, state._replace(p=jnp.float32(9)), jnp.int32(step)
      ).p
      self.assertEqual(p, path[min(step, 6)])

  def test_gradient_goes_to_the_ends_that_a_kind_uses(self):
    p_of = lambda settings, state: exponents.at_step(settings, state, 5).p
    derivatives = jax.jit(jax.grad(p_of, (0, 1), allow_int=True))
    for kind, by_start, by_end, by_p in (
      ('fixed', 1, 0, 0),
      ('linear', 0.5, 0.5, 0),
      ('cosine', 0.5, 0.5, 0),
      ('adaptive', 0, 0, 1),
    ):
      by_settings, by_state = derivatives(*_start(kind))
      np.testing.assert_allclose(
        (by_settings.start, by_settings.end, by_state.p),
        (by_start, by_end, by_p),
        atol=1e-7,
      )


@jax.jit
def _loss_by_row(p, log_ratio, advantages, mask):
  """Loss without a clip that binds, and its gradient in the rows' orders."""
  loss = lambda p: losses.power_mean_loss(
    log_ratio,
    jnp.zeros_like(log_ratio),
    advantages,
    mask,
    p=p,
    clip_eps_low=1 - 2.0**-20,
    clip_eps_high=jnp.inf,
  )[0]
  return jax.value_and_grad(loss)(p)


def _update(gradient, kind='learnable', rows=None, p=None, **values):
  settings, state = _start(kind, **values)
  if p is not None:
    state = state._replace(p=jnp.float32(p))
  gradient = jnp.asarray(gradient)
  rows = jnp.ones(gradient.shape, bool) if rows is None else jnp.array(rows)
  return _after_update(settings, state, gradient, rows)


class LearnableTest(parameterized.TestCase):
  @parameterized.parameters(1.0, -1.0)
  def test_one_row_by_hand(self, advantage):
    # r = [1, 2, 4] at p = 1: M = 7/3 and shares 3/7, 6/7, 12/7.
    log_ratio = jnp.log(jnp.array([[1.0, 2.0, 4.0]]))
    divergence = np.dot([1 / 7, 2 / 7, 4 / 7], np.log([3 / 7, 6 / 7, 12 / 7]))
    expected = advantage * 7 / 3 * divergence
    gradient = _loss_by_row(
      jnp.ones(1), log_ratio, jnp.array([advantage]), jnp.ones((1, 3), bool)
    )[1]
    state, metrics = _update(gradient, start=1.0, rate=0.25)
    np.testing.assert_allclose(
      metrics['exponent/gradient'], expected, rtol=2e-6
    )
    np.testing.assert_allclose(state.p, 1 + 0.25 * expected, rtol=1e-6)

  @parameterized.parameters(-1.5, -1e-3, 0.0, 1.0)
  def test_gradient_is_that_of_the_loss(self, p):
    rng = np.random.default_rng(0)
    log_ratio, advantages = rng.normal(size=(5, 6)) / 2, rng.normal(size=5)
    mask = rng.random((5, 6)) < 0.7
    mask[3] = False
    with reference.x64():
      of = lambda p: _loss_by_row(jnp.full(5, p), log_ratio, advantages, mask)
      h = 1e-5
      slope = (of(p + h)[0] - of(p - h)[0]) / (2 * h)
      _, metrics = _update(of(p)[1], rows=mask.any(axis=1))
    np.testing.assert_allclose(metrics['exponent/gradient'], -slope, rtol=1e-6)

  def test_ascends_or_goes_astray(self):
    # Of J, against the gradient of the loss: 2 * 0.1 up, or down.
    for sign, expected in ((1.0, 0.7), (-1.0, 0.3)):
      state, metrics = _update([-1.5, -0.5], start=0.5, sign=sign)
      np.testing.assert_allclose(state.p, expected, rtol=1e-6)
      self.assertEqual(metrics['exponent/gradient'], 2)

  def test_pull_does_not_depend_on_the_sign(self):
    # 0.1 (+-2 - 3 (1.5 - 0.5))
    for sign, expected in ((1.0, 1.4), (-1.0, 1.0)):
      state, _ = _update([-2.0], start=1.5, sign=sign, pull=3.0, prior=0.5)
      np.testing.assert_allclose(state.p, expected, rtol=1e-6)

  def test_pull_alone_ends_at_the_prior(self):
    settings, state = _start('learnable', pull=1.0, prior=0.5, rate=0.5)
    for _ in range(30):
      state, _ = _after_update(settings, state, jnp.zeros(2), jnp.ones(2, bool))
    np.testing.assert_allclose(state.p, 0.5, rtol=1e-6)

  @parameterized.parameters(
    (-1e30, 2.0, 1),
    (1e30, -2.0, 1),
    (0.0, 0.5, 0),
    (-15.0, 2.0, 1),
    (-14.9, 1.99, 0),
  )
  def test_bounds(self, gradient, expected, at_bound):
    state, metrics = _update([gradient], start=0.5)
    np.testing.assert_allclose(state.p, expected, rtol=1e-6)
    self.assertEqual(metrics['exponent/at_bound'], at_bound)

  def test_leaves_a_bound(self):
    state, metrics = _update([1.0], start=2.0)
    np.testing.assert_allclose(state.p, 1.9, rtol=1e-6)
    self.assertEqual(metrics['exponent/at_bound'], 0)

  def test_start_outside_is_brought_in(self):
    self.assertEqual(_update([0.0], start=5.0)[0].p, 2)

  def test_other_kinds_stay_and_report_alike(self):
    gradient = [-1.5, 0.5, 0.25]
    expected = _update(gradient, p=2.0)[1]
    for kind in set(_KINDS) - {'learnable'}:
      state, metrics = _update(gradient, kind, p=2.0, pull=1.0)
      self.assertEqual(state.p, 2)
      for key in ('exponent/gradient', 'exponent/gradient_snr'):
        self.assertEqual(metrics[key], expected[key])
      # Only those that have a bound are at it.
      self.assertEqual(metrics['exponent/at_bound'], kind == 'adaptive')

  @parameterized.product(
    bad=(np.nan, np.inf, -np.inf, 3e38), kind=('learnable', 'fixed')
  )
  def test_gradient_that_is_not_finite(self, bad, kind):
    # Twice 3e38 is one too: the sum is.
    state, metrics = _update([0.1, bad, bad, 0.2], kind, start=0.5, pull=1.0)
    self.assertEqual((state.p, state.ignored_gradients), (0.5, 1))
    self.assertEqual(metrics['exponent/gradient'], 0)
    self.assertEqual(metrics['exponent/gradient_snr'], 0)

  def test_pull_that_overflows_against_a_rate_of_zero(self):
    state, _ = _update([0.1, 0.2], rate=0.0, pull=3e38, prior=-100.0, start=0.5)
    self.assertEqual((state.p, state.ignored_gradients), (0.5, 1))

  @parameterized.parameters(1.0, -1.0)
  def test_normalized_by_the_mean_size(self, sign):
    # Means of |dJ/dp|: 2, 3, 2, then 3; one that is not finite enters none.
    settings, state = _start(
      'learnable', start=0.5, rate=0.1, sign=sign, normalize=True
    )
    p, rows = 0.5, jnp.ones(1, bool)
    for gradient, change in (
      (2.0, 1.0),
      (-4.0, -4 / 3),
      (0.0, 0.0),
      (np.nan, 0.0),
      (6.0, 2.0),
    ):
      state, _ = _after_update(settings, state, jnp.array([-gradient]), rows)
      p += 0.1 * sign * change
      np.testing.assert_allclose(state.p, p, rtol=1e-6)
    self.assertEqual((state.num_gradients, state.gradient_size), (4, 3))

  def test_normalized_against_a_loop(self):
    # The first gradient of a rollout is 0; the mean decays from 100 on.
    gradients = np.random.default_rng(3).normal(size=130) * np.arange(130)
    gradients[::8] = 0
    settings, state = _start(
      'learnable', start=0.0, rate=0.01, normalize=True, pull=0.3, prior=1.0
    )
    body = lambda state, g: exponents.after_update(
      settings, state, g[None], jnp.ones(1, bool)
    )
    state, _ = jax.lax.scan(body, state, jnp.float32(-gradients))
    p, size = 0.0, 0.0
    for i, gradient in enumerate(gradients):
      size += (abs(gradient) - size) / min(i + 1, 100)
      p += 0.01 * ((gradient / size if size else 0.0) - 0.3 * (p - 1))
    np.testing.assert_allclose(state.p, p, rtol=1e-4)

  @parameterized.parameters(1e-30, 1e-3, 1e30)
  def test_normalized_at_any_scale(self, scale):
    gradients = np.random.default_rng(4).normal(size=12)
    settings, state = _start('learnable', start=0.0, normalize=True)
    orders = []
    for factor in (1.0, scale):
      end = state
      for gradient in gradients:
        end, _ = _after_update(
          settings, end, jnp.float32([factor * gradient]), jnp.ones(1, bool)
        )
      orders.append(end.p)
    self.assertGreater(abs(orders[0]), 0.01)
    np.testing.assert_allclose(orders[1], orders[0], rtol=1e-5)

  def test_normalized_without_any_gradient_stays(self):
    state, _ = _update([0.0, 0.0], start=0.5, normalize=True)
    self.assertEqual((state.p, state.gradient_size), (0.5, 0))

  def test_good_gradients_are_not_counted(self):
    self.assertEqual(_update([0.1, 0.2])[0].ignored_gradients, 0)

  @parameterized.parameters(np.nan, np.inf, 1e30)
  def test_rows_without_tokens_change_no_bit(self, garbage):
    clean, dirty = (
      _update([0.3, fill, -0.1, 0.7], rows=[True, False, True, True])
      for fill in (0.0, garbage)
    )
    chex.assert_trees_all_equal(clean, dirty)

  @parameterized.parameters(1.0, 1e-30, 1e30)
  def test_signal_to_noise(self, scale):
    values = np.random.default_rng(1).normal(loc=0.5, size=9)
    rows = np.arange(9) % 4 != 1
    live = values[rows]
    expected = abs(np.mean(live)) * 7**0.5 / np.std(live, ddof=1)
    self.assertLen(live, 7)
    metrics = _update(jnp.float32(scale * values), rows=rows)[1]
    np.testing.assert_allclose(
      metrics['exponent/gradient_snr'], expected, rtol=1e-5
    )

  @parameterized.named_parameters(
    ('equal', [0.1] * 7, [True] * 7),
    ('zero', [0.0] * 3, [True] * 3),
    ('single', [0.3, 5.0], [True, False]),
    ('none', [1.0, 2.0], [False] * 2),
    ('no_row', np.zeros(0, np.float32), np.zeros(0, bool)),
  )
  def test_signal_to_noise_without_a_spread(self, gradient, rows):
    metrics = _update(gradient, rows=rows)[1]
    self.assertEqual(metrics['exponent/gradient_snr'], 0)


def _one_minus_ess(x, p):
  """1 - (sum a^p)^2 / (n sum a^2p) of one row, by the definition."""
  top = max(x)
  powers = [math.exp(p * (v - top)) for v in x]
  return 1 - sum(powers) ** 2 / (len(x) * sum(a * a for a in powers))


def _solution(x, frac):
  """Bisection in float64 for ESS(p) = ESS(1) + frac (1 - ESS(1))."""
  low, high = 0.0, 1.0
  target = (1 - frac) * _one_minus_ess(x, 1.0)
  for _ in range(60):
    middle = (low + high) / 2
    if _one_minus_ess(x, middle) <= target:
      low = middle
    else:
      high = middle
  return low


def _matched(log_ratio, clipped, mask=None):
  log_ratio = jnp.asarray(log_ratio)
  mask = jnp.ones(log_ratio.shape, bool) if mask is None else jnp.array(mask)
  return _of_rows(*_start('matched'), log_ratio, mask, jnp.array(clipped))


def _first(counts, length):
  """[B, T] bool, true on the first count tokens of each row."""
  return np.arange(length) < np.array(counts)[:, None]


class MatchedTest(parameterized.TestCase):
  def test_by_hand(self):
    # a = [1, 3]: 1 - ESS(1) = 1 - 16/20; half of it is clipped away, so that
    # (1 + b)^2 / (2 + 2 b^2) = 9/10 with b = 3^p: b = 2.
    p = _matched([[0.0, np.log(3)]], _first([1], 2))
    np.testing.assert_allclose(p, np.log(2) / np.log(3), rtol=1e-6)

  @parameterized.parameters(1e-4, 1e-2, 0.3, 3.0, 20.0)
  def test_bisection_in_float64(self, scale):
    x = np.float32(scale * np.random.default_rng(3).normal(size=12))
    counts = np.arange(12)
    solved = _matched(np.tile(x, (12, 1)), _first(counts, 12))
    expected = [_solution(np.float64(x), c / 12) for c in counts]
    np.testing.assert_allclose(solved, expected, atol=2e-6, rtol=2e-6)

  def test_close_tokens_keep_their_digits(self):
    # 1 - ESS = p^2 var(x) to first order: p = sqrt(1 - f), far below the 1e-7
    # to which float32 knows ESS.
    x = np.float32(2e-6 * np.array([1, -1, 0.5, -0.25, 0, 0.75]))
    solved = _matched(np.tile(x, (7, 1)), _first(range(7), 6))
    np.testing.assert_allclose(solved, np.sqrt(1 - np.arange(7) / 6), atol=1e-5)

  @parameterized.parameters(1e-5, 0.1, 5.0, 80.0, 1e4)
  def test_falls_from_1_to_0_with_the_clipped_fraction(self, scale):
    x = np.float32(scale * np.random.default_rng(4).uniform(-1, 1, size=16))
    solved = np.asarray(_matched(np.tile(x, (17, 1)), _first(range(17), 16)))
    self.assertEqual((solved[0], solved[-1]), (1, 0))
    self.assertTrue(np.all(np.diff(solved) <= 0), solved)
    if scale < 80:
      self.assertTrue(np.all(np.diff(solved) < 0), solved)

  @hypothesis.settings(max_examples=30, deadline=None)
  @hypothesis.given(
    strategies.lists(
      strategies.floats(-5, 5, width=32), min_size=8, max_size=8
    ),
    strategies.integers(1, 7),
    strategies.sampled_from([0.0, -3.0, 4.0]),
  )
  def test_meets_its_target(self, x, count, shift):
    solved = _matched(np.float32([x]) + np.float32(shift), _first([count], 8))
    if np.var(np.float32(x)) < 1e-6:
      return
    self.assertBetween(solved[0], 0, 1)
    target = (1 - count / 8) * _one_minus_ess(x, 1.0)
    np.testing.assert_allclose(
      _one_minus_ess(x, float(solved[0])), target, rtol=1e-4, atol=2e-6
    )

  def test_clipping_costs_order(self):
    # Both rows have the same log-ratios, of which one clipped the largest.
    x = np.minimum(
      np.float32([[0.1, -0.3, 0.4, 0.9], [0.1, -0.3, 0.4, 0.9]]), 0.4
    )
    solved = _matched(x, [[False] * 4, [False, False, False, True]])
    self.assertEqual(solved[0], 1)
    self.assertBetween(solved[1], 0.8, 0.9)

  def test_rows_without_spread_are_arithmetic(self):
    x = np.float32(
      [[0.3] * 4, [0.3, 0.3 + 1e-7, 0.3, 0.3], [1e4] * 4, [2.0] * 4]
    )
    mask = np.ones((4, 4), bool)
    mask[3, 1:] = False
    np.testing.assert_array_equal(_matched(x, np.ones((4, 4), bool), mask), 1)

  @parameterized.parameters(1e4, 1e30, 3e38)
  def test_extreme_ratios(self, size):
    x = np.float32(
      [
        [size, -size, 0, 0],
        [0, -size, 0, 0],
        [0, size, 0, 0],
        [size, size, -size, size],
      ]
    )
    for count in range(5):
      solved = _matched(x, _first([count] * 4, 4))
      self.assertTrue(np.all((solved >= 0) & (solved <= 1)), solved)
      if size == 1e4:
        # To the 6e-8 that is left of the bracket.
        expected = [_solution(row, count / 4) for row in np.float64(x)]
        if 0 < count < 4:
          np.testing.assert_allclose(solved, expected, atol=2e-7)

  @parameterized.parameters(np.nan, np.inf, -np.inf, 1e30)
  def test_what_is_masked_changes_no_bit(self, garbage):
    x = np.random.default_rng(5).normal(size=(4, 6)).astype(np.float32)
    mask = np.random.default_rng(6).random((4, 6)) < 0.6
    mask[2] = False
    clipped = x > 0.2
    clean = _matched(np.where(mask, x, 0), clipped & mask, mask)
    dirty = _matched(np.where(mask, x, garbage), clipped | ~mask, mask)
    np.testing.assert_array_equal(clean, dirty)
    self.assertEqual(clean[2], 1)
    self.assertTrue(np.all(np.isfinite(clean)))
    wide = [np.pad(v, ((0, 0), (1, 4))) for v in (x, clipped, mask)]
    np.testing.assert_allclose(_matched(*wide), clean, atol=1e-6)

  def test_no_token_at_all(self):
    empty = np.zeros((3, 0), bool)
    np.testing.assert_array_equal(
      _matched(np.zeros((3, 0), np.float32), empty, empty), 1
    )

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_bad_tokens_give_a_finite_order(self, bad):
    solved = _matched([[0.1, bad, 0.2]], _first([1], 3))
    self.assertBetween(solved[0], 0, 1)

  @parameterized.parameters(jnp.bfloat16, jnp.float16)
  def test_short_types_are_computed_in_float32(self, dtype):
    x = jnp.asarray([[0.5, -0.25, 0.125, 0, 8.0, 3.0]], dtype)
    solved = _matched(x, _first([2], 6))
    self.assertEqual(solved.dtype, np.float32)
    np.testing.assert_array_equal(
      solved, _matched(x.astype(jnp.float32), _first([2], 6))
    )

  def test_float64(self):
    with reference.x64():
      x = np.random.default_rng(7).normal(size=(3, 9))
      solved = _matched(x, _first([2, 4, 8], 9))
      self.assertEqual(solved.dtype, np.float64)
      for p, row, count in zip(solved, x, (2, 4, 8)):
        np.testing.assert_allclose(p, _solution(row, count / 9), atol=1.2e-7)

  def test_other_kinds_give_p_to_every_row(self):
    settings, state = _start('matched')
    state = state._replace(p=jnp.float32(0.3))
    x = jnp.zeros((3, 2)).at[0].set(jnp.nan)
    mask = jnp.ones((3, 2), bool)
    for kind in set(_KINDS) - {'matched'}:
      settings = settings._replace(kind=jnp.int32(exponents.index_of(kind)))
      np.testing.assert_array_equal(
        _of_rows(settings, state, x, mask, mask), np.full(3, np.float32(0.3))
      )

  def test_gradient_passes_p_and_no_solution(self):
    x = jnp.array([[0.1, -1e4, 1e4], [0.2, 0.2, 0.2], [3.0, jnp.nan, 1.0]])
    mask = jnp.array([[1, 1, 1], [1, 1, 1], [0, 0, 0]], bool)
    total = lambda settings, state, x: jnp.sum(
      exponents.of_rows(settings, state, x, mask, x > 0)
    )
    derivatives = jax.grad(total, (1, 2), allow_int=True)
    settings, states = _all_kinds()
    by_state, by_x = jax.jit(jax.vmap(derivatives, (0, 0, None)))(
      settings, states, x
    )
    np.testing.assert_array_equal(by_x, np.zeros((7, 3, 3)))
    np.testing.assert_array_equal(by_state.p, [3, 3, 3, 3, 0, 3, 3])


def _run_gaps(gaps, kind='adaptive', **values):
  """Decisions, orders and metrics of a run of gaps."""
  settings, state = _start(kind, **values)
  decisions, orders, metrics = [], [], {}
  for gap in gaps:
    state, metrics = _after_step(settings, state, jnp.float32(gap))
    decisions.append(int(metrics['exponent/decision']))
    orders.append(float(state.p))
  return decisions, orders, metrics


def _average(gaps, window):
  """Plain mean while they fill the window, then exponential."""
  average = 0.0
  for i, gap in enumerate(gaps):
    weight = 1 / min(i + 1, window)
    average = (1 - weight) * average + weight * gap
  return average


class AdaptiveTest(parameterized.TestCase):
  # Thresholds 1 and 4; a rise is 3/2 of the mean of it and the one before.
  @parameterized.named_parameters(
      ('wide', [5.], [-1]),
      ('at_the_upper_threshold', [4.], [0]),
      ('between', [2., 2.5, 2.], [0, 0, 0]),
      ('at_the_lower_threshold', [1.], [0]),
      ('narrow', [.5, .4], [1, 1]),
      ('rises_between', [1., 3.5], [0, -1]),
      ('rises_too_little', [2., 3.5], [0, 0]),
      ('rises_below', [.1, .9], [1, 0]),
      ('rises_from_nothing', [0., .5, 2.], [1, 0, -1]),
      ('falls_but_is_wide', [8., 5.], [-1, -1]),
      ('falls_through', [8., 2., .5], [-1, 0, 1]),
      ('nothing', [0., 0.], [1, 1]),
      ('rounded_below_0', [-1e-7], [1]),
      ('not_finite', [np.nan, .5, np.inf, -np.inf, 5.], [0, 1, 0, 0, -1]),
      ('rises_over_what_is_ignored', [1., np.nan, 3.5], [0, 0, -1]),
  )  # fmt: skip
  def test_decisions(self, gaps, expected):
    self.assertEqual(_run_gaps(gaps)[0], expected)

  def test_steps_and_bounds(self):
    gaps = [0.5] * 3 + [5.0] * 4
    decisions, orders, _ = _run_gaps(gaps, start=0.0, low=-0.4, high=1.2)
    self.assertEqual(decisions, [1, 1, 1, -1, -1, -1, -1])
    np.testing.assert_allclose(
      orders, [0.5, 1, 1.2, 0.7, 0.2, -0.3, -0.4], rtol=1e-6
    )

  def test_start_outside_is_brought_in(self):
    self.assertEqual(_run_gaps([2.0], start=5.0)[1], [2])

  def test_one_odd_rollout_does_not_decide(self):
    gaps = [2.0] * 8 + [9.0] + [2.0] * 3
    windows = {'fast_window': 5, 'slow_window': 25, 'trend': 1.0}
    self.assertEqual(_run_gaps(gaps, **windows)[0], [0] * 12)
    self.assertEqual(_run_gaps(gaps, trend=1.0)[0], [0] * 8 + [-1, 0, 0, 0])

  def test_a_lasting_rise_decides_before_the_threshold(self):
    gaps = 1.2 * 1.07 ** np.arange(17)
    self.assertLess(gaps[-1], 4)
    decisions, _, _ = _run_gaps(gaps, fast_window=5, slow_window=25, trend=0.1)
    # No trend is seen in fewer gaps than fast averages.
    self.assertEqual(decisions[:5], [0] * 5)
    self.assertEqual(decisions[-7:], [-1] * 7)

  @parameterized.parameters(1, 3, 5, 6, 40)
  def test_averages(self, num_gaps):
    gaps = np.random.default_rng(2).uniform(size=num_gaps)
    _, _, metrics = _run_gaps(gaps, fast_window=5, slow_window=25)
    fast, slow = _average(gaps, 5), _average(gaps, 25)
    np.testing.assert_allclose(metrics['exponent/gap_fast'], fast, rtol=1e-6)
    np.testing.assert_allclose(metrics['exponent/gap_slow'], slow, rtol=1e-6)
    np.testing.assert_allclose(
      metrics['exponent/gap_trend'], fast / slow - 1, atol=1e-6
    )
    if num_gaps <= 5:
      np.testing.assert_allclose(fast, np.mean(gaps))
      self.assertEqual(metrics['exponent/gap_trend'], 0)

  def test_steady_gap_is_its_average_to_the_bit(self):
    _, _, metrics = _run_gaps([0.1] * 40, fast_window=5, slow_window=25)
    for name in ('gap_fast', 'gap_slow'):
      self.assertEqual(metrics[f'exponent/{name}'], np.float32(0.1))

  def test_ignored_gaps_leave_no_trace_but_their_number(self):
    gaps = [0.3, 1.7, 2.9]
    expected = _run_gaps(gaps)[2]
    spoiled = [np.nan, gaps[0], np.inf, gaps[1], -np.inf, np.nan, gaps[2]]
    metrics = _run_gaps(spoiled)[2]
    self.assertEqual(metrics.pop('exponent/ignored_gaps'), 4)
    self.assertEqual(expected.pop('exponent/ignored_gaps'), 0)
    chex.assert_trees_all_equal(metrics, expected)

  def test_only_gaps_that_are_not_finite(self):
    _, orders, metrics = _run_gaps([np.nan] * 3)
    self.assertEqual(orders, [2.0] * 3)
    chex.assert_tree_all_finite(metrics)
    self.assertEqual(metrics['exponent/gap_trend'], 0)

  def test_thresholds_are_quantiles_of_the_last_gaps(self):
    # The quartiles of the last four, from the second gap on: 2.5 and 3.5 twice,
    # 1.75 and 3.25, 1.75 and 4.5, .875 and 4.5, and at the end .8 and 3.
    values = {'gap_quantiles': True, 'gap_low': .25, 'gap_high': .75,
              'slow_window': 4, 'trend': 9.}  # fmt: skip
    gaps = [4.0, 2.0, 3.0, 1.0, 9.0, 0.5, np.nan, 0.9]
    expected = [0, 1, 0, 1, -1, 1, 0, 0]
    self.assertEqual(_run_gaps(gaps, **values)[0], expected)
    self.assertNotEqual(_run_gaps(gaps, trend=9.0, slow_window=4)[0], expected)

  @parameterized.parameters(1e-6, 1e6)
  def test_quantiles_know_no_scale(self, scale):
    gaps = np.random.default_rng(6).gamma(2.0, size=200)
    values = {'gap_quantiles': True, 'gap_low': .15, 'gap_high': .9,
              'slow_window': 128, 'fast_window': 2}  # fmt: skip
    run = lambda gaps: _run_gaps(gaps, **values)[0]
    self.assertEqual(run(gaps), run(scale * gaps))
    # A loop in float64.
    expected, slow, fast = [], 0.0, 0.0
    for i, gap in enumerate(gaps):
      fast += (gap - fast) / min(i + 1, 2)
      slow += (gap - slow) / min(i + 1, 128)
      low, high = np.quantile(gaps[max(0, i - 127) : i + 1], [0.15, 0.9])
      rising = fast > 1.5 * slow
      down = fast > high or rising and fast > low
      expected.append(int(fast < low and not rising) - int(down))
    self.assertEqual(run(gaps), expected)
    self.assertLen(set(expected), 3)

  def test_a_steady_gap_is_no_quantile_to_pass(self):
    decisions, _, _ = _run_gaps([.1] * 9, gap_quantiles=True, gap_low=.25,
                                gap_high=.75)  # fmt: skip
    self.assertEqual(decisions, [0] * 9)

  def test_other_kinds_watch_and_stay(self):
    for kind in set(_KINDS) - {'adaptive'}:
      decisions, orders, metrics = _run_gaps([8.0, 2.0, 0.5], kind, start=5.0)
      self.assertEqual((decisions, orders), ([0] * 3, [5.0] * 3))
      self.assertEqual(metrics['exponent/gap_slow'], 2.75)


def _all_kinds(**values):
  """Settings and first states of every kind, stacked."""
  stack = lambda *leaves: jnp.stack(leaves)
  settings = jax.tree.map(
    stack, *(_settings(kind, **values) for kind in _KINDS)
  )
  return settings, jax.vmap(exponents.init)(settings)


def _rollout(settings, state, step, log_ratio, mask, advantages, gap):
  """All that a rollout with one update calls; orders, state and metrics."""
  state = exponents.at_step(settings, state, step)
  bounded = jnp.minimum(log_ratio, 0.3)
  orders = exponents.of_rows(settings, state, bounded, mask, log_ratio > 0.3)
  _, gradient = _loss_by_row(orders, bounded, advantages, mask)
  state, metrics = exponents.after_update(
    settings, state, gradient, jnp.any(mask, axis=1)
  )
  state, more = exponents.after_step(settings, state, gap)
  assert not set(metrics) & set(more)
  return orders, state, metrics | more


def _inputs(scale=2.0):
  """Step, log-ratios, mask, advantages and gap of a rollout."""
  rng = np.random.default_rng(8)
  log_ratio = np.float32(scale * rng.normal(size=(4, 6)))
  mask = rng.random((4, 6)) < 0.8
  mask[1] = False
  log_ratio[~mask] = np.nan
  advantages = np.float32([1.5, np.nan, -0.3, 0.4])
  return jnp.int32(3), log_ratio, mask, advantages, jnp.float32(0.2)


class ContractTest(parameterized.TestCase):
  def test_one_program_for_every_kind(self):
    traces = []

    @jax.jit
    def run(*args):
      traces.append(None)
      return _rollout(*args)

    for i, kind in enumerate(_KINDS):
      settings, state = _start(kind, rate=0.1 * i)
      for _ in range(2):
        _, state, _ = run(settings, state, *_inputs())
    self.assertLen(traces, 1)

  @parameterized.parameters(2.0, 1e4)
  def test_kinds_side_by_side_are_kinds_alone(self, scale):
    inputs = _inputs(scale)
    in_axes = (0, 0) + (None,) * len(inputs)
    together = jax.jit(jax.vmap(_rollout, in_axes))(*_all_kinds(), *inputs)
    chex.assert_tree_all_finite(together)
    alone = jax.jit(_rollout)
    for i, kind in enumerate(_KINDS):
      chex.assert_trees_all_close(
        jax.tree.map(lambda x, i=i: x[i], together),
        alone(*_start(kind), *inputs),
        rtol=1e-5,
        atol=1e-6,
      )
    orders = together[0]
    for i in (0, 3, 5):
      np.testing.assert_array_equal(orders[i], 2)
    self.assertLen(np.unique(orders[[1, 2], 0]), 2)
    self.assertLess(np.min(orders[4]), 1)
    np.testing.assert_array_equal(orders[6], np.float32(0.1))

  @parameterized.product(kind=_KINDS, x64=(False, True))
  def test_types_and_keys(self, kind, x64):
    with reference.x64() if x64 else contextlib.nullcontext():
      settings, state = _start(kind)
      run = jax.jit(_rollout)
      _, new_state, metrics = run(settings, state, *_inputs())
    self.assertEqual(tuple(leaf.dtype for leaf in new_state), _DTYPES)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
    self.assertSameElements(
      metrics,
      [
        f'exponent/{name}'
        for name in (
          'gradient',
          'gradient_snr',
          'at_bound',
          'decision',
          'gap_fast',
          'gap_slow',
          'gap_trend',
          'ignored_gaps',
          'ignored_gradients',
        )
      ],
    )
    for metric in metrics.values():
      self.assertEqual((metric.shape, metric.dtype), ((), np.float32))
    chex.assert_tree_all_finite(metrics)

  def test_wide_settings_do_not_widen_the_state(self):
    with reference.x64():
      settings = jax.tree.map(
        jnp.asarray,
        exponents.Settings(
          **dict.fromkeys(exponents.Settings._fields, 1.5)
          | {
            'kind': 5,
            'normalize': True,
            'gap_quantiles': True,
            'path': np.ones(2),
          }
        ),
      )
      state = exponents.init(settings)
      new_state = jax.jit(_rollout)(settings, state, *_inputs())[1]
    self.assertEqual(tuple(leaf.dtype for leaf in new_state), _DTYPES)

  @parameterized.named_parameters(
    ('schedule', 'cosine', exponents.at_step),
    ('rows', 'matched', exponents.of_rows),
    ('ascent', 'learnable', exponents.after_update),
    ('decision', 'adaptive', exponents.after_step),
  )
  def test_jit_equals_no_jit(self, kind, of):
    step, x, mask, _, gap = _inputs()
    args = {
      'cosine': (step,),
      'matched': (x, mask, x > 0.3),
      'learnable': (jnp.arange(4.0), mask[:, 0]),
      'adaptive': (gap,),
    }[kind]
    with jax.disable_jit():
      plain = of(*_start(kind), *args)
    chex.assert_trees_all_close(
      jax.jit(of)(*_start(kind), *args), plain, rtol=1e-5, atol=1e-6
    )

  def test_states_can_be_carried_and_donated(self):
    step = jax.jit(exponents.after_step, donate_argnums=1)
    settings, state = _start('adaptive')
    for _ in range(3):
      state, _ = step(settings, state, jnp.float32(0.5))
    self.assertEqual(state.num_gaps, 3)
    body = lambda state, gap: exponents.after_step(settings, state, gap)
    state, metrics = jax.lax.scan(
      body, exponents.init(settings), jnp.array([5.0, 2.0, 0.5])
    )
    np.testing.assert_array_equal(metrics['exponent/decision'], [-1, 0, 1])
    self.assertEqual(state.p, 2)

  @parameterized.named_parameters(
    ('mask_type', 'of_rows', ((2, 3), 'f'), ((2, 3), 'f'), ((2, 3), '?')),
    ('clipped_type', 'of_rows', ((2, 3), 'f'), ((2, 3), '?'), ((2, 3), 'f')),
    ('shape', 'of_rows', ((2, 3), 'f'), ((2, 1), '?'), ((2, 3), '?')),
    ('rank', 'of_rows', ((3,), 'f'), ((3,), '?'), ((3,), '?')),
    ('rows_type', 'after_update', ((2,), 'f'), ((2,), 'f')),
    ('rows_shape', 'after_update', ((2,), 'f'), ((1,), '?')),
    ('gradient_rank', 'after_update', ((), 'f'), ((), '?')),
    ('step_rank', 'at_step', ((1,), 'i')),
    ('gap_rank', 'after_step', ((2,), 'f')),
  )
  def test_raises_when_traced(self, name, *arrays):
    of = functools.partial(getattr(exponents, name), *_start())
    with self.assertRaises(AssertionError):
      jax.eval_shape(of, *(jax.ShapeDtypeStruct(*array) for array in arrays))

  def test_settings_are_scalars_the_kind_an_integer_and_the_path_a_row(self):
    for change in (
      {'rate': jnp.ones(2)},
      {'kind': jnp.float32(1)},
      {'path': jnp.float32(1)},
      {'path': jnp.ones((2, 2))},
      {'path': jnp.ones(0)},
    ):
      with self.assertRaises(AssertionError):
        exponents.init(_settings()._replace(**change))


if __name__ == '__main__':
  absltest.main()
