"""Iterates of A and H, of the ratios and measured against a clip range."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import agm
from hmpo_jax.training import objective
from hmpo_jax.training import update
from tests import small

_made = jax.jit(agm.iterates)


def _iterates(a, h, num=agm.MAX_ITERATIONS):
  """a_0 to a_K and h_0 to h_K, as the iteration is written."""
  pairs = [(a, h)]
  for _ in range(num):
    a, h = (a + h) / 2, 2 * a * h / (a + h)
    pairs.append((a, h))
  return np.array(pairs).T


class IteratesTest(parameterized.TestCase):
  def test_rows_are_iterated_and_then_averaged(self):
    # Rows {4, 1}: A = 5/2, H = 8/5; {2}: both 2; one without tokens.
    log_ratio = jnp.log(jnp.array([[4.0, 1.0], [2.0, 9.0], [7.0, 7.0]]))
    mask = jnp.array([[True, True], [True, False], [False, False]])
    result = _made(jnp.where(mask, log_ratio, 0), mask, 0.2, 0.2)
    first, second = _iterates(5 / 2, 8 / 5), _iterates(2.0, 2.0)
    a, h = (first + second) / 2
    np.testing.assert_allclose(result['agm/arithmetic_iterates'], a, rtol=3e-7)
    np.testing.assert_allclose(result['agm/harmonic_iterates'], h, rtol=3e-7)
    # Iterates of the averages (9/4 and 9/5) are others.
    self.assertGreater(abs(_iterates(9 / 4, 9 / 5)[0][-1] - a[-1]), 1e-3)

  @parameterized.parameters(
    (0.2, 0.2, (math.log(1.2) - math.log(0.8)) / 2),
    (0.1, 0.4, (math.log(1.4) - math.log(0.9)) / 2),
    (1.0, 0.4, math.log(1.4)),
    (0.1, math.inf, -math.log(0.9)),
    (1.0, math.inf, 1.0),
  )
  def test_clip_normalised_ones_start_from_roots(self, low, high, width):
    log_ratio = jnp.log(jnp.array([[1.2, 0.9]]))
    result = _made(log_ratio, jnp.ones((1, 2), bool), low, high)
    a, h = _iterates(
      ((1.2 + 0.9) / 2) ** (1 / width), (2 / (1 / 1.2 + 1 / 0.9)) ** (1 / width)
    )
    np.testing.assert_allclose(
      result['agm/arithmetic_iterates_clip'], a, rtol=2e-6
    )
    np.testing.assert_allclose(
      result['agm/harmonic_iterates_clip'], h, rtol=2e-6
    )

  def test_gap_that_the_clip_can_tell_is_no_convergence(self):
    # The rule of the controllers, 1 - mean |a - h| / (|a| + |h|): ratios .95 to
    # 1.05 look converged, and are not for a range of 0.01.
    log_ratio = jnp.log(jnp.array([[0.95, 1.05, 1.0]]))
    result = _made(log_ratio, jnp.ones((1, 3), bool), 0.01, 0.01)
    distance = lambda suffix: float(
      abs(
        result[f'agm/arithmetic_iterates{suffix}'][0]
        - result[f'agm/harmonic_iterates{suffix}'][0]
      )
      / (
        result[f'agm/arithmetic_iterates{suffix}'][0]
        + result[f'agm/harmonic_iterates{suffix}'][0]
      )
    )
    self.assertLess(distance(''), 0.001)
    self.assertGreater(distance('_clip'), 0.05)

  def test_extreme_ratios_stay_finite(self):
    log_ratio = jnp.array([[20.0, -20.0, 20.0], [0.0, 0.0, 0.0]])
    result = _made(log_ratio, jnp.ones((2, 3), bool), 0.05, 0.05)
    for name, values in result.items():
      self.assertTrue(np.all(np.isfinite(values)), name)
    # A row e^8 and one of 1.
    np.testing.assert_allclose(
      result['agm/arithmetic_iterates_clip'][0],
      (math.exp(8) + 1) / 2,
      rtol=1e-6,
    )

  @parameterized.parameters((0.0, 0.0), (1.0, 0.0), (0.0, math.inf))
  def test_range_of_no_width(self, low, high):
    # On-policy all is 1; beyond, as far out as a normalised mean may be.
    log_ratio = jnp.array([[0.0, 0.0], [0.1, 0.1]])
    result = _made(log_ratio, jnp.ones((2, 2), bool), low, high)
    for mean in ('arithmetic', 'harmonic'):
      np.testing.assert_allclose(
        result[f'agm/{mean}_iterates_clip'], (1 + math.exp(8)) / 2, rtol=1e-6
      )
    result = _made(log_ratio[:1], jnp.ones((1, 2), bool), low, high)
    for name, values in result.items():
      np.testing.assert_array_equal(values, 1, name)

  def test_without_rows_all_is_zero(self):
    result = _made(jnp.zeros((2, 3)), jnp.zeros((2, 3), bool), 0.05, 0.05)
    for values in result.values():
      np.testing.assert_array_equal(values, 0)

  def test_no_gradient(self):
    total = lambda x: sum(
      jnp.sum(v)
      for v in agm.iterates(x, jnp.ones((1, 2), bool), 0.1, 0.1).values()
    )
    np.testing.assert_array_equal(jax.grad(total)(jnp.array([[0.1, 0.3]])), 0)


class RangeTest(parameterized.TestCase):
  @parameterized.parameters(
    ({}, math.log(1.4) - math.log(0.6)),
    ({'loss__clip': 'token_log'}, 0.8),
    ({'loss__name': 'reinforce'}, 2.0),
    ({'loss__name': 'sapo'}, 2.0),
    ({'loss__name': 'cispo', 'loss__clip_eps_low': 1.0}, 2 * math.log(1.4)),
  )
  def test_iterates_are_in_widths_of_the_loss(self, overrides, both):
    widths = (
      {}
      if overrides.get('loss__name') in ('reinforce', 'sapo')
      else {'loss__clip_eps_low': 0.4, 'loss__clip_eps_high': 0.4}
    )
    static, hparams, _ = small.start(small.config(**(widths | overrides)))
    low, high = objective._clip_range(static, update.start_controls(hparams))
    x = jnp.array([[0.1, -0.1]])
    result = _made(x, jnp.ones((1, 2), bool), low, high)
    log_a = math.log(math.cosh(0.1))
    np.testing.assert_allclose(
      np.log(result['agm/arithmetic_iterates_clip'][0]),
      log_a / (both / 2),
      rtol=1e-4,
    )


if __name__ == '__main__':
  absltest.main()
