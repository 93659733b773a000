"""How logits are held against tau."""

from absl.testing import absltest
import numpy as np

from hmpo_jax import overshoot


class AgainstTauTest(absltest.TestCase):

  def test_only_updates_after_the_first_above_tau_count(self):
    found = overshoot.against_tau(
        np.array([[1., 2.], [60., 10.], [11., 11.6], [9., 10.]]), 10.)
    self.assertEqual(found['first_over'], 2)
    self.assertEqual(found['steps_over_tau'], 0.5)
    self.assertEqual(found['below_115'], 0.8)
    self.assertAlmostEqual(found['largest_after'], 1.16)

  def test_nothing_above_tau(self):
    found = overshoot.against_tau(np.ones((2, 3)), 10.)
    self.assertEqual(tuple(found.values()), (0., 6, 1., 0.))

  def test_overshoot_is_a_product_for_heads_above_tau(self):
    before = np.array([[9., 12.], [30., 5.]])
    same = np.array([[9., 11.], [10., 6.]])
    following = np.array([[9., 10.], [12., 18.]])
    found = overshoot.factors(before, same, following, 10.)
    np.testing.assert_allclose(found, [[1., 1., 1.2], [0.5, 1.2, 3.]])


if __name__ == '__main__':
  absltest.main()
