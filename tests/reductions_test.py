"""Reductions that keep NaN."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import reductions

_nan_max = jax.jit(reductions.nan_max, static_argnums=1)


class NanMaxTest(parameterized.TestCase):

  @parameterized.parameters(None, 0, -1, ((0, 2),))
  def test_equals_numpy(self, axis):
    x = np.random.default_rng(0).normal(size=(9, 6, 70)).astype(np.float32)
    np.testing.assert_array_equal(_nan_max(x, axis), np.max(x, axis))
    x[2, 3, 4] = np.nan
    x[5, 3, 1] = np.inf
    np.testing.assert_array_equal(_nan_max(x, axis), np.max(x, axis))

  def test_all_minus_infinity(self):
    self.assertTrue(jnp.isneginf(_nan_max(np.full(40, -np.inf), None)))

  @parameterized.parameters(3, 64, 1000)
  def test_nan_alone(self, size):
    self.assertTrue(jnp.isnan(_nan_max(np.full((size, size), np.nan), None)))


if __name__ == '__main__':
  absltest.main()
