"""Moments and quality of gradient estimates, by hand and by search."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from hmpo_jax.analysis import estimates


class QualityTest(parameterized.TestCase):
  def test_moments(self):
    gradients = np.array([[1.0, 2.0], [3.0, 2.0], [2.0, 5.0]], np.float32)
    found = estimates.moments_of(jnp.array(gradients), jnp.array([0.0, 2.0]))
    # Mean [2, 3]; variances 1 and 3.
    self.assertAlmostEqual(float(found.along), 3, places=5)
    self.assertAlmostEqual(float(found.along_square), 9 - 1, places=5)
    self.assertAlmostEqual(float(found.variance), 4, places=5)
    self.assertAlmostEqual(float(found.mean_square), 13 - 4 / 3, places=5)

  def test_moments_of_many_samples_have_no_bias(self):
    mean, truth = np.array([0.3, 0.4]), jnp.array([1.0, 0.0])
    samples = mean + np.random.default_rng(0).normal(size=(20000, 3, 2))
    found = jax.vmap(lambda x: estimates.moments_of(x, truth))(
      jnp.float32(samples)
    )
    means = [float(np.mean(x)) for x in found]
    np.testing.assert_allclose(means, [0.3, 0.09, 0.25, 2], atol=0.03)

  @parameterized.parameters(1, 4, 100)
  def test_mse_is_that_of_the_best_factor(self, num_prompts):
    rng = np.random.default_rng(num_prompts)
    truth = rng.normal(size=3)
    groups = truth + rng.normal(size=(50, 3)) * [1, 2, 3] + 0.5
    mean, covariance = groups.mean(axis=0), np.cov(groups.T)
    along = mean @ truth / np.linalg.norm(truth)
    found = estimates.quality(
      estimates.Moments(along, along**2, mean @ mean, np.trace(covariance)),
      np.linalg.norm(truth),
      num_prompts,
    )

    def error(c, variance):
      distance = c * mean - truth
      return (distance @ distance + c**2 * variance) / (truth @ truth)

    of_batch = np.trace(covariance) / num_prompts
    best = optimize.minimize_scalar(error, args=(of_batch,), tol=1e-12).fun
    limit = optimize.minimize_scalar(error, args=(0,), tol=1e-12).fun
    np.testing.assert_allclose(found.mse, best, rtol=1e-6)
    np.testing.assert_allclose(found.bias_square, limit, rtol=1e-6)
    np.testing.assert_allclose(found.variance, best - limit, rtol=1e-6)
    np.testing.assert_allclose(found.noise, of_batch / (mean @ mean), rtol=1e-6)

  # Truth of length 2; the mean estimate along it, and its length.
  @parameterized.parameters(
    (2.0, 2.0, 0.0, 1.0),
    (0.0, 1.0, 1.0, 0.0),
    (-2.0, 2.0, 1.0, -1.0),
    (1.0, 2.0, 0.75, 0.5),
  )
  def test_bias_and_slope_by_hand(self, along, length, bias, slope):
    found = estimates.quality(
      estimates.Moments(
        np.float64(along),
        np.float64(along**2),
        np.float64(length**2),
        np.float64(0),
      ),
      np.float64(2),
      1,
    )
    self.assertAlmostEqual(float(found.mse), bias)
    self.assertAlmostEqual(float(found.bias_square), bias)
    self.assertAlmostEqual(float(found.slope), slope)

  def test_no_gradient_is_no_estimate(self):
    nothing = estimates.moments_of(jnp.zeros((4, 3)), jnp.ones(3))
    found = estimates.quality(nothing, np.float64(3), 4)
    self.assertEqual([float(x) for x in found], [1, 1, 0, 0, 0])

  def test_refuses_one_group(self):
    with self.assertRaisesRegex(ValueError, '1 groups: must be at least 2'):
      estimates.moments_of(jnp.ones((1, 2)), jnp.ones(2))


if __name__ == '__main__':
  absltest.main()
