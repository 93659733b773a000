"""The warm start learns, and does nothing in zero steps."""

from absl.testing import absltest
import jax

from hmpo_jax import learner
from hmpo_jax import partition
from hmpo_jax import policy
from hmpo_jax import warm_start
from tests import small


class WarmStartTest(absltest.TestCase):

  def test_warm_start_learns_and_zero_steps_is_the_initialisation(self):
    config = small.config()
    static = partition.static(config)
    warm = jax.jit(warm_start.train, static_argnums=0)
    task = policy.make_task(static)
    prompts = jax.vmap(task.draw)(jax.random.split(jax.random.key(3), 64))
    evaluate = jax.jit(learner.evaluate, static_argnums=0)
    rewards = []
    for num_steps in (0, 200):
      params = warm(static, num_steps, 1e-2, jax.random.key(0))
      rewards.append(evaluate(static, params, prompts)['eval/reward'])
    self.assertLess(rewards[0], 0.4)
    self.assertGreater(rewards[1], rewards[0] + 0.2)


if __name__ == '__main__':
  absltest.main()
