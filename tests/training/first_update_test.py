"""The first update of a rollout, whose ratios are 1 to the last bit."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp

from tests import small


class FirstUpdateTest(parameterized.TestCase):
  @parameterized.parameters('power_mean', 'grpo', 'cispo')
  def test_ratio_of_the_first_update_is_exactly_one(self, loss):
    _, records = small.steps(small.config(loss__name=loss), num=3)
    for record in records:
      self.assertEqual(record['ratio/first_update_abs_log'], 0)
      self.assertLess(record['ratio/recompute_gap'], 1e-5)
      self.assertGreater(record['log_ratio/abs_max'], 0)
      self.assertLess(record['rollout/sampler_gap_max'], 1e-5)

  def test_bfloat16_step(self):
    states, (record,) = small.steps(small.config(model__dtype='bfloat16'))
    self.assertEqual(
      {key: n for key, n in record.items() if 'skipped/' in key},
      {key: 0 for key in record if 'skipped/' in key},
    )
    self.assertEqual(record['ratio/first_update_abs_log'], 0)
    self.assertGreater(record['log_ratio/abs_max'], 0)
    self.assertBetween(record['rollout/sampler_gap_max'], 1e-5, 0.2)
    chex.assert_type(jax.tree.leaves(states[1].params), jnp.float32)


if __name__ == '__main__':
  absltest.main()
