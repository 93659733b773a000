"""The warm start learns, and does nothing in zero steps."""

import pathlib
import tempfile
import types

from absl.testing import absltest
import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.config import traced
from hmpo_jax.model import transformer
from hmpo_jax.run import first_params
from hmpo_jax.training import learner
from hmpo_jax.training import policy
from hmpo_jax.training import warm_start
from tests import small


class WarmStartTest(absltest.TestCase):
  def test_warm_start_learns_and_zero_steps_is_the_initialisation(self):
    config = small.config()
    static = traced.static(config)
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

  def test_muon_learns_too_and_leaves_adam_its_part(self):
    config = small.config(warm_start__optimizer='muon')
    static = traced.static(config)
    warm = jax.jit(warm_start.train, static_argnums=0)
    start, first, end = (
      warm(static, num_steps, 1e-2, jax.random.key(0), muon_learning_rate=2e-2)
      for num_steps in (0, 1, 200)
    )
    step = jax.tree.map(lambda a, b: np.abs(a - b), start, first)
    # Adam's first step has the size of its rate; Muon's one a root mean square
    # of about a fifth of its own.
    np.testing.assert_allclose(step['embed'].max(), 1e-2, rtol=1e-2)
    up = step['layers']['mlp']['up']['kernel']
    self.assertBetween(np.sqrt(np.mean(up**2)), 2e-3, 6e-3)
    task = policy.make_task(static)
    prompts = jax.vmap(task.draw)(jax.random.split(jax.random.key(3), 64))
    rewards = (
      jax.jit(learner.evaluate, static_argnums=0)(static, params, prompts)[
        'eval/reward'
      ]
      for params in (start, end)
    )
    self.assertGreater(-next(rewards) + next(rewards), 0.2)

  def test_stops_at_the_share_that_it_samples(self):
    warm = jax.jit(warm_start.train, static_argnums=0)
    config = small.config(
      task__name='mapped_copy', task__num_digits=8, warm_start__stop_reward=0.4
    )
    config.warm_start.stop_reward = 0.4
    static = traced.static(config)
    task = policy.make_task(static)
    prompts = jax.vmap(task.draw)(jax.random.split(jax.random.key(3), 256))
    collect = jax.jit(learner.evaluate, static_argnums=0)
    args = 400, 1e-2, jax.random.key(0)
    # Greedy responses are right more often than the sampled ones.
    stopped = collect(static, warm(static, *args, 0.4), prompts)['eval/share']
    self.assertBetween(stopped, 0.35, 0.8)
    end = collect(static, warm(static, *args, 1.0), prompts)['eval/share']
    self.assertGreater(end, stopped + 0.15)
    fresh = collect(static, warm(static, 0, *args[1:], 0.4), prompts)
    self.assertLess(fresh['eval/share'], 0.2)

  def test_query_scale_multiplies_logits_and_shares_the_cache(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    place = pathlib.Path(folder.name)
    config = small.config(model__qk_bias=True)
    static, _, state = small.start(config)
    state.params['layers']['attention']['query']['bias'] += 0.5
    programs = types.SimpleNamespace(
      static=static, warm_params=lambda: state.params
    )
    found = {}
    for scale in (1.0, 4096.0):
      config.warm_start.query_scale = scale
      found[scale] = first_params.of(config, programs, place, self.fail)
    self.assertLen(list((place / 'warm_start').iterdir()), 1)
    chex.assert_trees_all_equal(found[1.0], state.params)
    model, tokens = policy.make_model(static), jnp.array([[3, 5, 2, 4]])
    args = tokens, tokens > 0, jnp.arange(4)[None]
    before, after = (
      transformer.apply(model, params, *args).max_logits[0]
      for params in found.values()
    )
    np.testing.assert_allclose(after, 4096 * before, rtol=1e-5)
    attention = found[4096.0]['layers'].pop('attention')
    attention['query'] = jax.tree.map(lambda w: w / 4096, attention['query'])
    found[4096.0]['layers']['attention'] = attention
    chex.assert_trees_all_equal(found[4096.0], state.params)


if __name__ == '__main__':
  absltest.main()
