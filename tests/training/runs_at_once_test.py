"""Many runs at once are the runs by themselves, but for rounding."""

from absl.testing import absltest
import chex

from hmpo_jax.training import run_axis
from tests.training import run_axis_test as runs_test


class AtOnceTest(absltest.TestCase):
  def test_a_run_is_the_single_run_up_to_rounding(self):
    state, metrics = runs_test.grid('vmap')
    for i, (one, one_metrics) in enumerate(runs_test.alone()):
      # What was sampled has no rounding.
      for key in ('reward/mean', 'rollout/tokens', 'rollout/length_mean'):
        self.assertAlmostEqual(metrics[key][i], one_metrics[key], places=5)
      chex.assert_trees_all_close(
        run_axis.take(state.params, i), one.params, atol=2e-4
      )


if __name__ == '__main__':
  absltest.main()
