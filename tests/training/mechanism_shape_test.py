"""How log-ratios are spread, against hand values and float64."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.training import mechanism


class ShapeTest(parameterized.TestCase):
  def _shape(self, x, mask):
    x = jnp.asarray(np.where(mask, x, 0), jnp.float32)
    return jax.device_get(mechanism.shape(x, jnp.asarray(mask)))

  def test_by_hand(self):
    # Two rows of x = +-1 around 0 and +-1 around 2: sigma = 1, n = 2, and of
    # (1, 1, 1, 1) over 1^2 less 3 is -2. log M_-1 is log M_0 - log cosh 1; log
    # M_0 is 0 and 2, of deviation sqrt 2.
    found = self._shape(
      np.array([[1.0, -1.0, 9.0], [3.0, 1.0, 9.0]]),
      np.array([[1, 1, 0], [1, 1, 0]], bool),
    )
    self.assertAlmostEqual(found['sigma_sqrt_n'], 2**0.5, places=6)
    self.assertAlmostEqual(found['kurtosis'], -2, places=5)
    self.assertAlmostEqual(
      found['shift_over_spread'], np.log(np.cosh(1)) / 2**0.5, places=6
    )

  @parameterized.parameters(0.02, 1e-7, 1e-15)
  def test_equals_float64(self, sigma):
    rng = np.random.default_rng(1)
    mask = np.arange(24) < rng.integers(0, 25, 40)[:, None]
    x = sigma * rng.standard_t(6, mask.shape)
    rows = [np.float64(np.float32(r[m])) for r, m in zip(x, mask) if m.any()]
    self.assertLess(len(rows), 40)
    sizes = np.array([len(row) for row in rows])
    centred = np.concatenate([row - np.mean(row) for row in rows])
    variance = np.mean([np.var(row) for row in rows])
    means_of_rows = np.array([np.mean(row) for row in rows])
    shifts = [np.mean(row) + np.log(np.mean(np.exp(-row))) for row in rows]
    found = self._shape(x, mask)
    self.assertAlmostEqual(
      found['sigma_sqrt_n'] / np.sqrt(variance / np.mean(1 / sizes)),
      1,
      places=5,
    )
    self.assertAlmostEqual(
      found['kurtosis'],
      np.mean(centred**4) / np.mean(centred**2) ** 2 - 3,
      places=3,
    )
    if sigma > 1e-3:  # below, log M_-1 is log M_0 in float32 and in float64
      expected = np.mean(shifts) / np.std(means_of_rows, ddof=1)
      self.assertAlmostEqual(
        found['shift_over_spread'] / expected, 1, delta=1e-3
      )

  def test_independent_tokens_obey_the_law(self):
    # 4,000 rows of 64 Gaussian tokens: the shift is sigma sqrt(n) / 2 spreads.
    x = np.random.default_rng(2).normal(-0.1, 0.2, (4000, 64))
    found = self._shape(x, np.ones(x.shape, bool))
    self.assertAlmostEqual(found['sigma_sqrt_n'], 0.2 * 8, delta=0.02)
    self.assertAlmostEqual(found['shift_over_spread'], 0.8, delta=0.03)
    self.assertAlmostEqual(found['kurtosis'], 0, delta=0.05)

  @parameterized.parameters(0.0, 0.3)
  def test_nothing_that_spreads_gives_zero(self, value):
    found = self._shape(np.full((3, 4), value), np.ones((3, 4), bool))
    self.assertEqual(set(map(float, found.values())), {0.0})


if __name__ == '__main__':
  absltest.main()
