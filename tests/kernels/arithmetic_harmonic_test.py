"""The A-H iteration and its limit, and how evenly weights are spread."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import means
from tests import reference

_log_power_mean = jax.jit(means.log_power_mean)
_arithmetic_harmonic = jax.jit(means.arithmetic_harmonic, static_argnums=2)


def _row(*values):
  """Logs [1, T] of the values, and a mask that is true."""
  log_x = jnp.log(jnp.array([values]))
  return log_x, jnp.ones_like(log_x, bool)


class ArithmeticHarmonicTest(parameterized.TestCase):
  def test_steps(self):
    # 4 and 1, then 5/2 and 8/5, then 41/20 and 80/41.
    log_a, log_h = _arithmetic_harmonic(jnp.log(4.0), jnp.log(1.0), 2)
    np.testing.assert_allclose(jnp.exp(log_a), [4, 5 / 2, 41 / 20], rtol=3e-7)
    np.testing.assert_allclose(jnp.exp(log_h), [1, 8 / 5, 80 / 41], rtol=3e-7)

  def test_limit_is_not_the_geometric_mean(self):
    # {1, 1, 8}: A = 10/3, H = 24/17, G = 2; the limit is sqrt(80/17) = 2.169.
    row = _row(1, 1, 8)
    log_a, log_h = _arithmetic_harmonic(
      _log_power_mean(*row, 1.0), _log_power_mean(*row, -1.0), 6
    )
    np.testing.assert_allclose(jnp.exp(log_a[0]), [10 / 3], rtol=3e-7)
    np.testing.assert_allclose(jnp.exp(log_h[0]), [24 / 17], rtol=3e-7)
    for last in (log_a[-1], log_h[-1]):
      np.testing.assert_allclose(jnp.exp(last), [(80 / 17) ** 0.5], rtol=3e-7)

  def test_limit_of_a_log_symmetric_row_is_the_geometric_mean(self):
    row = _row(1, 2, 4, 8)
    log_a, _ = _arithmetic_harmonic(
      _log_power_mean(*row, 1.0), _log_power_mean(*row, -1.0), 6
    )
    np.testing.assert_allclose(log_a[-1], _log_power_mean(*row, 0.0), rtol=3e-7)

  @parameterized.parameters(1e-3, 0.1, 1.0, 4.0, 30.0)
  def test_closed_form(self, gap):
    # (a - g) / (a + g) = u^(2^k), where u = tanh(log(A / H) / 4).
    with reference.x64():
      log_a, log_h = np.asarray(
        _arithmetic_harmonic(jnp.float64(1 + gap), jnp.float64(1), 6)
      )
    np.testing.assert_allclose(log_a + log_h, 2 + gap, rtol=1e-14)
    np.testing.assert_allclose(
      np.tanh((log_a - log_h) / 4),
      np.tanh(gap / 4) ** (2 ** np.arange(7)),
      rtol=1e-12,
      atol=1e-15,
    )

  def test_wide_gaps_halve_at_first(self):
    # log cosh(x) = x - log 2: a halves, h doubles.
    log_a, log_h = _arithmetic_harmonic(jnp.float32([1e4]), jnp.zeros(1), 3)
    steps = np.arange(4) * np.log(2)
    np.testing.assert_allclose(log_a[:, 0], 1e4 - steps, rtol=2e-7)
    np.testing.assert_allclose(log_h[:, 0], steps, atol=2e-3)

  def test_equal_starts_stay(self):
    for history in _arithmetic_harmonic(jnp.full(2, 0.1), jnp.full(2, 0.1), 4):
      np.testing.assert_array_equal(history, np.full((5, 2), np.float32(0.1)))

  def test_no_step_is_the_start(self):
    log_a, log_h = _arithmetic_harmonic(jnp.ones(3), jnp.zeros(3), 0)
    chex.assert_shape([log_a, log_h], (1, 3))

  def test_gradient(self):
    # a' = (a + h) / 2: d log a' / d log a = a / (a + h), 4/5 at 4 and 1.
    last = lambda a, h: _arithmetic_harmonic(a, h, 1)[0][-1]
    np.testing.assert_allclose(
      jax.grad(last, (0, 1))(jnp.log(4.0), jnp.log(1.0)), (0.8, 0.2), rtol=1e-6
    )
    for gap in (0.0, 1e-6, 1.0, 1e4):
      chex.assert_tree_all_finite(jax.grad(last, (0, 1))(gap, 0.0))


class LimitTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 1e-3, 0.1, 4.0, 12.0)
  def test_both_iterates_end_there(self, gap):
    log_a, log_h = jnp.float32(1 + gap), jnp.float32(1)
    limit = means.arithmetic_harmonic_limit(log_a, log_h)
    for history in _arithmetic_harmonic(log_a, log_h, 16):
      np.testing.assert_allclose(history[-1], limit, rtol=3e-7)

  def test_gradient_is_half_of_each(self):
    for gap in (0.0, 1.0, 1e4):
      slopes = jax.grad(means.arithmetic_harmonic_limit, (0, 1))(gap, 0.0)
      self.assertEqual(slopes, (0.5, 0.5))


class SpreadTest(parameterized.TestCase):
  """Effective sample size and entropy of token weights."""

  def test_by_hand(self):
    mask = jnp.array([4 * [True], 4 * [True], [True, True, False, False]])
    weights = jnp.array([4 * [1 / 4], [1, 0, 0, 0], [3 / 4, 1 / 4, 0, 0]])
    np.testing.assert_allclose(
      means.effective_sample_size(weights, mask), [1, 1 / 4, 4 / 5], rtol=1e-6
    )
    entropy = 2 * np.log(2) - 3 / 4 * np.log(3)
    np.testing.assert_allclose(
      means.weight_entropy(weights), [2 * np.log(2), 0, entropy], rtol=1e-6
    )

  def test_falls_as_the_order_leaves_zero(self):
    log_x = jnp.array([[0.3, -1.0, 0.2, 0.7], [0, 0, 0, 0]])
    mask = jnp.ones_like(log_x, bool)
    for sign in (1, -1):
      sizes, entropies = [], []
      for p in (0.0, 0.5, 1.0, 4.0, 50.0):
        weights = means.token_weights(log_x, mask, sign * p)
        sizes.append(means.effective_sample_size(weights, mask))
        entropies.append(means.weight_entropy(weights))
      for values, start in ((sizes, 1), (entropies, np.log(4))):
        np.testing.assert_allclose(values[0], start, rtol=1e-6)
        self.assertTrue(np.all(np.diff(values, axis=0)[:, 0] < 0))
        np.testing.assert_allclose(np.array(values)[:, 1], start, rtol=1e-6)

  def test_empty_rows_are_zero(self):
    for shape in ((2, 3), (2, 0), (0, 3)):
      weights, mask = jnp.zeros(shape), jnp.zeros(shape, bool)
      for values in (
        means.effective_sample_size(weights, mask),
        means.weight_entropy(weights),
      ):
        np.testing.assert_array_equal(values, np.zeros(shape[0]))

  def test_gradients_are_finite_where_a_weight_is_zero(self):
    mask = jnp.array([[True, True, False], 3 * [False]])
    weights = jnp.array([[1.0, 0, 0], [0, 0, 0]])
    for of in (
      lambda w: means.effective_sample_size(w, mask),
      means.weight_entropy,
    ):
      slopes = jax.grad(lambda w, of=of: jnp.sum(of(w)))(weights)
      chex.assert_tree_all_finite(slopes)


if __name__ == '__main__':
  absltest.main()
