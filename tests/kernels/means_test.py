"""Power means: by hand, by their identities, and against 50 digits."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import means
from tests import reference

_ORDERS = (-50.0, -3.0, -1.0, -1e-3, 0.0, 1e-3, 0.5, 1.0, 50.0)
_GARBAGE = (
  ('nan', np.nan),
  ('inf', np.inf),
  ('minus_inf', -np.inf),
  ('large', 1e30),
)


def _total(log_x, mask, p):
  return jnp.sum(means.log_power_mean(log_x, mask, p))


_log_power_mean = jax.jit(means.log_power_mean)
_token_weights = jax.jit(means.token_weights)
# A row's derivative is that of the sum over rows.
_derivatives = jax.jit(jax.grad(_total, argnums=(0, 2)))
_hessian = jax.jit(jax.hessian(_total, argnums=(0, 2)))


def _row(*values):
  """Logs [1, T] of the values, and a mask that is true."""
  log_x = jnp.log(jnp.array([values]))
  return log_x, jnp.ones_like(log_x, bool)


def _batch(scale=0.5, shift=0.0):
  """Log values [4, 6], rows of 6, 4, 1 and 3 tokens, not only at the start."""
  log_x = shift + scale * np.random.default_rng(0).normal(size=(4, 6))
  mask = np.array(
    [
      [1, 1, 1, 1, 1, 1],
      [0, 1, 1, 1, 1, 0],
      [0, 0, 0, 1, 0, 0],
      [1, 0, 1, 0, 1, 0],
    ],
    bool,
  )
  return jnp.asarray(log_x, jnp.float32), jnp.asarray(mask)


class HandTest(parameterized.TestCase):
  # x = [1, 2, 4]: A = 7/3, G = 2, H = 12/7.
  @parameterized.named_parameters(
    ('arithmetic', 1.0, 7 / 3),
    ('geometric', 0.0, 2.0),
    ('harmonic', -1.0, 12 / 7),
    ('quadratic', 2.0, 7**0.5),
    ('of_order_minus_2', -2.0, 4 / 7**0.5),
    ('nearly_largest', 50.0, 4 / 3**0.02),
    ('nearly_smallest', -50.0, 3**0.02),
  )
  def test_value(self, p, expected):
    value = jnp.exp(_log_power_mean(*_row(1, 2, 4), p))
    np.testing.assert_allclose(value, [expected], rtol=3e-7)

  # x^p over its sum; the derivative in p at 0 is half the variance.
  @parameterized.named_parameters(
    ('arithmetic', 1.0, [1 / 7, 2 / 7, 4 / 7]),
    ('geometric', 0.0, [1 / 3, 1 / 3, 1 / 3]),
    ('harmonic', -1.0, [4 / 7, 2 / 7, 1 / 7]),
  )
  def test_weights_are_the_gradient(self, p, expected):
    row = _row(1, 2, 4)
    np.testing.assert_allclose(_token_weights(*row, p), [expected], rtol=3e-7)
    np.testing.assert_allclose(_derivatives(*row, p)[0], [expected], rtol=3e-7)

  def test_slope_in_p(self):
    # Variance 2/3 log(2)^2 at p = 0; at p = 1 with shares 3/7, 6/7 and 12/7.
    divergence = np.dot([1 / 7, 2 / 7, 4 / 7], np.log([3 / 7, 6 / 7, 12 / 7]))
    for p, expected in ((0.0, np.log(2) ** 2 / 3), (1.0, divergence)):
      slope = _derivatives(*_row(1, 2, 4), p)[1]
      np.testing.assert_allclose(slope, expected, rtol=1e-6)

  def test_one_spike_in_a_hundred_tokens(self):
    log_x = jnp.zeros((1, 100)).at[0, 37].set(80)
    mask = jnp.ones_like(log_x, bool)
    orders = jnp.array([1.0, 0.0, -1.0, -50.0])
    for sign in (1, -1):
      value = jax.vmap(_log_power_mean, (None, None, 0))(
        sign * log_x, mask, sign * orders
      )
      np.testing.assert_allclose(
        value[:, 0],
        sign * np.array([75.39483, 0.8, 0.010050336, 2.01007e-4]),
        rtol=1e-6,
        atol=3e-7,
      )

  def test_opposite_tokens(self):
    mask = jnp.ones((1, 2), bool)
    orders = jnp.array([1.0, 0.0, -1.0, 50.0, 1e-7])
    for x, expected in (
      (80.0, [79.306853, 0, -79.306853, 79.986137, 3.2e-4]),
      (1e4, [9999.3069, 0, -9999.3069, 9999.9861, 5]),
    ):
      value = jax.vmap(_log_power_mean, (None, None, 0))(
        jnp.array([[x, -x]]), mask, orders
      )
      np.testing.assert_allclose(value[:, 0], expected, rtol=0, atol=2e-7 * x)

  def test_slope_has_the_tail_of_an_extreme_token(self):
    # log(n / m) / p^2 with n = 2 tokens, m = 1 of them extreme.
    log_x = jnp.array([[80.0, -80.0]])
    for p in (50.0, -50.0):
      slope = _derivatives(log_x, jnp.ones_like(log_x, bool), p)[1]
      np.testing.assert_allclose(slope, np.log(2) / 2500, rtol=1e-6)

  def test_is_smooth_through_order_zero(self):
    # Cumulants 2/30000, 2 * 2.11111e-8: 6.67e-5 + 2.11e-8 p + 3e-13 p^2.
    log_x = jnp.array([[1e-4, -2e-4, 3e-4]])
    for p in (-1.0, -1e-2, -1e-3, -1e-7, 0.0, 1e-7, 1e-3, 1e-2, 1.0):
      value = _log_power_mean(log_x, jnp.ones_like(log_x, bool), p)
      np.testing.assert_allclose(value, 2e-4 / 3 + p * 2.11111e-8, atol=2e-11)

  def test_long_row_of_equal_tokens(self):
    log_x = jnp.full((1, 32768), 0.01)
    for p in _ORDERS:
      np.testing.assert_array_equal(
        _log_power_mean(log_x, jnp.ones_like(log_x, bool), p),
        np.float32([0.01]),
      )


class IdentityTest(parameterized.TestCase):
  @parameterized.parameters(*_ORDERS)
  def test_inversion(self, p):
    log_x, mask = _batch()
    np.testing.assert_allclose(
      _log_power_mean(log_x, mask, -p),
      -_log_power_mean(-log_x, mask, p),
      atol=2e-7,
    )

  @parameterized.parameters(*_ORDERS)
  def test_shift(self, p):
    log_x, mask = _batch()
    np.testing.assert_allclose(
      _log_power_mean(log_x + 3, mask, p),
      _log_power_mean(log_x, mask, p) + 3,
      atol=1e-6,
    )

  @parameterized.parameters(*_ORDERS)
  def test_one_token_is_its_own_mean(self, p):
    log_x, mask = _batch()
    by_x, by_p = _derivatives(log_x, mask, jnp.full(4, p))
    self.assertEqual(_log_power_mean(log_x, mask, p)[2], log_x[2, 3])
    np.testing.assert_array_equal(by_x[2], [0, 0, 0, 1, 0, 0])
    self.assertEqual(by_p[2], 0)

  @parameterized.parameters(*_ORDERS)
  def test_equal_tokens_are_their_mean(self, p):
    # Not dyadic, so that a sum of 6 rounds.
    log_x, mask = _batch(scale=0, shift=0.1)
    np.testing.assert_array_equal(_log_power_mean(log_x, mask, p), log_x[:, 0])
    np.testing.assert_array_equal(
      _derivatives(log_x, mask, jnp.full(4, p))[1], 0
    )

  def test_grows_with_the_order(self):
    log_x, mask = _batch()
    values = jnp.stack([_log_power_mean(log_x, mask, p) for p in _ORDERS])
    several = np.sum(mask, axis=1) > 1
    self.assertTrue(np.all(np.diff(values[:, several], axis=0) > 0))
    largest = np.max(np.where(mask, log_x, -np.inf), axis=1)
    smallest = np.min(np.where(mask, log_x, np.inf), axis=1)
    self.assertTrue(np.all(values <= largest))
    self.assertTrue(np.all(values >= smallest))

  @parameterized.parameters(*_ORDERS)
  def test_order_of_tokens_does_not_matter(self, p):
    log_x, mask = _batch()
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(
      _log_power_mean(log_x[:, order], mask[:, order], p),
      _log_power_mean(log_x, mask, p),
      atol=2e-7,
    )
    np.testing.assert_allclose(
      _token_weights(log_x[:, order], mask[:, order], p),
      _token_weights(log_x, mask, p)[:, order],
      atol=2e-7,
    )

  @parameterized.parameters(*_ORDERS)
  def test_every_token_twice(self, p):
    log_x, mask = _batch()
    twice = lambda x: jnp.concatenate([x, x], axis=1)
    np.testing.assert_allclose(
      _log_power_mean(twice(log_x), twice(mask), p),
      _log_power_mean(log_x, mask, p),
      atol=2e-7,
    )
    np.testing.assert_allclose(
      2 * _token_weights(twice(log_x), twice(mask), p),
      twice(_token_weights(log_x, mask, p)),
      atol=3e-7,
    )

  @parameterized.parameters(*_ORDERS)
  def test_rows_do_not_see_each_other(self, p):
    log_x, mask = _batch()
    others = log_x.at[1:].set(9.0), mask.at[1:].set(True)
    self.assertEqual(
      _log_power_mean(log_x, mask, p)[0], _log_power_mean(*others, p)[0]
    )

  @parameterized.parameters(*_ORDERS)
  def test_weights_sum_to_one(self, p):
    log_x, mask = _batch()
    weights = _token_weights(log_x, mask, p)
    np.testing.assert_allclose(jnp.sum(weights, axis=1), 1, rtol=3e-7)
    np.testing.assert_array_equal(weights[~mask], 0)
    np.testing.assert_allclose(
      weights, _derivatives(log_x, mask, p)[0], rtol=1e-6
    )

  def test_each_row_has_its_order(self):
    log_x, mask = _batch()
    orders = jnp.array([-1.0, 0.0, 7.0, 1.0])
    for of in (_log_power_mean, _token_weights):
      together = of(log_x, mask, orders)
      for i, p in enumerate(orders):
        np.testing.assert_array_equal(together[i], of(log_x, mask, p)[i])


class MaskTest(parameterized.TestCase):
  @parameterized.product(garbage=_GARBAGE, p=(-1.0, 0.0, 2e-3, 50.0))
  def test_what_is_masked_changes_no_bit(self, garbage, p):
    log_x, mask = _batch()
    mask = mask.at[3].set(False)
    orders = jnp.full(4, p)
    for of in (_log_power_mean, _token_weights, _derivatives):
      clean, dirty = (
        of(jnp.where(mask, log_x, fill), mask, orders)
        for fill in (0.0, garbage[1])
      )
      chex.assert_tree_all_finite(clean)
      chex.assert_trees_all_equal(clean, dirty)

  @parameterized.parameters(*_ORDERS)
  def test_padding_changes_nothing(self, p):
    log_x, mask = _batch()
    wider = [jnp.pad(x, ((0, 0), (2, 9))) for x in (log_x, mask)]
    np.testing.assert_allclose(
      _log_power_mean(*wider, p), _log_power_mean(log_x, mask, p), atol=2e-7
    )
    by_x, by_p = _derivatives(*wider, jnp.full(4, p))
    expected_by_x, expected_by_p = _derivatives(log_x, mask, jnp.full(4, p))
    np.testing.assert_allclose(by_x[:, 2:-9], expected_by_x, atol=2e-7)
    np.testing.assert_allclose(by_p, expected_by_p, rtol=2e-5)
    np.testing.assert_array_equal(by_x[:, :2], 0)
    np.testing.assert_array_equal(by_x[:, -9:], 0)

  @parameterized.product(p=_ORDERS, num_tokens=(6, 0))
  def test_empty_rows_are_zero(self, p, num_tokens):
    log_x = jnp.full((2, num_tokens), 3.0)
    mask = jnp.zeros_like(log_x, bool)
    np.testing.assert_array_equal(_log_power_mean(log_x, mask, p), [0, 0])
    np.testing.assert_array_equal(_token_weights(log_x, mask, p), 0 * log_x)
    by_x, by_p = _derivatives(log_x, mask, p)
    np.testing.assert_array_equal(by_x, 0)
    self.assertEqual(by_p, 0)


def _rows(scale, length):
  """Rows of one length within +-scale that are hard to average."""
  rng = np.random.default_rng(length)
  spike = np.zeros(length)
  spike[length // 2] = scale
  heavy = np.sort(rng.standard_t(2, size=length))
  return (
    rng.uniform(-scale, scale, size=length),
    spike,
    1e-3 * scale - spike,
    scale * (1 - 1e-3 * rng.random(length)),
    scale * heavy / np.max(np.abs(heavy)),
  )


class AccuracyTest(parameterized.TestCase):
  def _check(self, dtype, rows, orders, *, value, by_x, by_p):
    """Bounds on the errors: value over max|x|, slopes over max(1, slope)."""
    cases = [(np.asarray(row, dtype), dtype(p)) for row in rows for p in orders]
    length = max(len(row) for row, _ in cases)
    log_x = np.stack([np.pad(row, (0, length - len(row))) for row, _ in cases])
    mask = np.stack([np.arange(length) < len(row) for row, _ in cases])
    p = np.stack([p for _, p in cases])
    values = _log_power_mean(log_x, mask, p)
    slopes = _derivatives(log_x, mask, p)
    self.assertEqual(values.dtype, dtype)
    for i, (row, order) in enumerate(cases):
      expected = reference.log_power_mean(row, order)
      got = values[i], slopes[0][i, : len(row)], slopes[1][i]
      scales = (
        np.max(np.abs(row)),
        np.maximum(1, expected[1]),
        max(1, expected[2]),
      )
      errors = [
        np.max(np.abs(np.float64(g) - e) / s)
        for g, e, s in zip(got, expected, scales)
      ]
      self.assertTrue(
        np.all(errors <= np.array([value, by_x, by_p])),
        f'{errors=} {order=} {row[:4]=} of {len(row)} tokens',
      )

  _orders = np.outer([1, -1], [1e-9, 1e-6, 1e-3, 0.01, 0.3, 1, 50]).ravel()
  _every_row = [
    row
    for scale in (1e-6, 1e-3, 0.3, 3.0, 80.0, 1e4)
    for length in (1, 3, 25)
    for row in _rows(scale, length)
  ]

  def test_float32(self):
    self._check(
      np.float32,
      self._every_row,
      [0.0, *self._orders],
      value=2e-6,
      by_x=1e-5,
      by_p=5e-5,
    )

  def test_float64(self):
    with reference.x64():
      self._check(
        np.float64,
        self._every_row,
        [0.0, *self._orders],
        value=1e-12,
        by_x=1e-12,
        by_p=1e-10,
      )

  def test_long_rows(self):
    wide, near = _rows(1e4, 32768), _rows(3.0, 32768)
    for row, p in ((wide[0], 1.0), (wide[3], 1e-3), (near[4], 0.01)):
      self._check(np.float32, [row], [p], value=2e-6, by_x=1e-5, by_p=5e-5)

  def test_slope_in_p_keeps_its_digits(self):
    # Relative error, across the switch to the series at about 0.0186 nats.
    for spread in (1e-6, 1e-3, 0.01, 0.018, 0.0187, 0.02, 0.05, 0.2, 1.0):
      row = np.float32(spread * np.array([1, -1, 0.2, 0.7, -0.1]))
      for p in (1.0, -1.0):
        slope = _derivatives(row[None], np.ones((1, 5), bool), p)[1]
        expected = reference.log_power_mean(row, p)[2]
        np.testing.assert_allclose(slope, expected, rtol=2e-5)


class TransformationTest(parameterized.TestCase):
  def test_jit_equals_no_jit(self):
    log_x, mask = _batch()
    with jax.disable_jit():
      plain = means.log_power_mean(log_x, mask, -1.0)
    np.testing.assert_allclose(
      _log_power_mean(log_x, mask, -1.0), plain, atol=2e-7
    )

  def test_vmap_over_orders(self):
    log_x, mask = _batch()
    orders = jnp.array(_ORDERS)
    together = jax.vmap(_log_power_mean, (None, None, 0))(log_x, mask, orders)
    slopes = jax.vmap(_derivatives, (None, None, 0))(log_x, mask, orders)
    for i, p in enumerate(_ORDERS):
      np.testing.assert_allclose(
        together[i], _log_power_mean(log_x, mask, p), atol=2e-7
      )
      chex.assert_trees_all_close(
        jax.tree.map(lambda x, i=i: x[i], slopes),
        _derivatives(log_x, mask, p),
        rtol=1e-5,
      )

  def test_one_program_for_every_order(self):
    log_x, mask = _batch()
    traces = []

    @jax.jit
    def run(log_x, p):
      traces.append(None)
      return jax.value_and_grad(_total, (0, 2))(log_x, mask, p)

    for i, p in enumerate(_ORDERS):
      run(log_x + i, jnp.float32(p))
    self.assertLen(traces, 1)

  @parameterized.parameters(*_ORDERS)
  def test_second_derivatives(self, p):
    # d w_t / d x_s = p w_t ([t = s] - w_s) and d w_t / dp = w_t (x_t - mu).
    x = np.array([0.3, -1.0, 0.2, 0.7])
    hessian = _hessian(jnp.float32([x]), jnp.ones((1, 4), bool), jnp.float32(p))
    chex.assert_tree_all_finite(hessian)
    w = reference.log_power_mean(x, p)[1]
    np.testing.assert_allclose(
      hessian[0][0][0, :, 0], p * (np.diag(w) - np.outer(w, w)), atol=1e-5
    )
    for mixed in (hessian[0][1], hessian[1][0]):
      np.testing.assert_allclose(mixed[0], w * (x - w @ x), atol=1e-5)
    if p == 0:
      third = np.mean((x - np.mean(x)) ** 3)
      np.testing.assert_allclose(hessian[1][1], third / 3, rtol=1e-5)

  def test_second_derivatives_ignore_what_is_masked(self):
    log_x, mask = _batch()
    mask = mask.at[3].set(False)
    for p in (-1.0, 0.0, 1.0):
      clean, dirty = (
        _hessian(jnp.where(mask, log_x, fill), mask, p)
        for fill in (0.0, jnp.nan)
      )
      chex.assert_tree_all_finite(clean)
      chex.assert_trees_all_equal(clean, dirty)

  @parameterized.parameters(jnp.bfloat16, jnp.float16)
  def test_narrow_inputs_are_computed_in_float32(self, dtype):
    log_x, mask = _batch()
    log_x = log_x.astype(dtype)
    for of in (_log_power_mean, _token_weights):
      np.testing.assert_array_equal(
        of(log_x, mask, 1.0), of(log_x.astype(jnp.float32), mask, 1.0)
      )


class ErrorsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('rank', (3,), (3,), bool, (), AssertionError, 'rank'),
    ('shape', (2, 3), (2, 4), bool, (), AssertionError, 'shape'),
    ('mask', (2, 3), (2, 3), jnp.float32, (), AssertionError, 'type'),
    ('order', (2, 3), (2, 3), bool, (3,), ValueError, 'broadcast'),
  )
  def test_raises_when_traced(self, x, mask, mask_dtype, p, error, message):
    for of in (means.log_power_mean, means.token_weights):
      with self.assertRaisesRegex(error, message):
        jax.eval_shape(
          of,
          jax.ShapeDtypeStruct(x, jnp.float32),
          jax.ShapeDtypeStruct(mask, mask_dtype),
          jax.ShapeDtypeStruct(p, jnp.float32),
        )


if __name__ == '__main__':
  absltest.main()
