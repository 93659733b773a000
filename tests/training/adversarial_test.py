"""Rewards and log-probabilities as bad as they come, through a whole step."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.tasks import task as task_lib
from hmpo_jax.training import learner
from tests import small

_collect = jax.jit(learner.collect, static_argnums=0)
_learn = jax.jit(learner.learn, static_argnums=0)
_NO = jnp.asarray(False)


class LearnTest(parameterized.TestCase):
  """4 groups of 8, 2 epochs of 2 minibatches, old log-probs of the sampler."""

  def setUp(self):
    super().setUp()
    self.static, self.hparams, self.state = small.start(
      small.config(rollout__old_logprobs='sampler')
    )
    self.rollout = _collect(self.static, self.state, self.hparams)
    self.reward = jnp.linspace(0, 1, 32)

  def _learn(self, reward=None, rollout=None):
    reward = self.reward if reward is None else jnp.asarray(reward, jnp.float32)
    scores = task_lib.Score(reward, jnp.zeros(32))
    state, metrics = _learn(
      self.static,
      self.state,
      self.hparams,
      self.rollout if rollout is None else rollout,
      scores,
      _NO,
    )
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
      # -inf is the largest attention logit before any was seen.
      self.assertTrue(np.all(np.isfinite(leaf) | np.isneginf(leaf)))
    return state, jax.device_get(metrics)

  def _skips(self, metrics):
    return {
      name.removeprefix('skipped/'): int(count)
      for name, count in metrics.items()
      if name.startswith('skipped/') and count
    }

  def _with_logprobs(self, change):
    """The rollout with its log-probabilities changed on the mask."""
    logprobs = change(np.array(self.rollout.logprobs), self.rollout.mask)
    return self.rollout._replace(logprobs=jnp.asarray(logprobs))

  @parameterized.parameters(0.1, 0.3, 1 / 3, 1e6)
  def test_equal_rewards_of_any_value_are_no_signal(self, value):
    state, metrics = self._learn(np.full(32, value))
    self.assertEqual(self._skips(metrics), {'no_signal': 4})
    chex.assert_trees_all_equal(state.params, self.state.params)

  def test_large_rewards_lose_no_digit_that_they_have(self):
    ones = np.arange(32) % 2
    _, small_metrics = self._learn(ones)
    _, large_metrics = self._learn(1e6 + ones)
    for name in ('advantage/reward_variance', 'advantage/abs_mean'):
      self.assertEqual(small_metrics[name], large_metrics[name])
    # Equal advantages, equal steps.
    self.assertEqual(small_metrics['grad/norm'], large_metrics['grad/norm'])

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_reward_that_is_not_finite_skips_its_updates_only(self, value):
    reward = np.array(self.reward)
    reward[:8] = [value] + [0.5] * 7
    _, metrics = self._learn(reward)
    skips = self._skips(metrics)
    self.assertBetween(skips['reward'], 2, 4)
    self.assertEqual(skips['in_a_row'], 4 if skips['reward'] == 4 else 0)

  def test_rewards_that_are_all_nan_move_nothing(self):
    state, metrics = self._learn(np.full(32, np.nan))
    self.assertEqual(self._skips(metrics), {'reward': 4, 'in_a_row': 4})
    chex.assert_trees_all_equal(
      (state.params, state.opt_state), (self.state.params, self.state.opt_state)
    )

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_logprob_that_is_not_finite_skips_its_updates(self, value):

    def spoil(logprobs, _):
      logprobs[3, 0] = value
      return logprobs

    _, metrics = self._learn(rollout=self._with_logprobs(spoil))
    # Each epoch meets the row once.
    self.assertEqual(self._skips(metrics).get('logprob'), 2)

  @parameterized.parameters(np.nan, np.inf, 1e30, -200.0)
  def test_padding_changes_no_bit(self, value):
    rollout = self._with_logprobs(lambda x, mask: np.where(mask, x, value))
    self.assertLess(float(jnp.mean(self.rollout.mask)), 1)
    clean, clean_metrics = self._learn()
    padded, metrics = self._learn(rollout=rollout)
    chex.assert_trees_all_equal(clean.params, padded.params)
    self.assertEqual(clean_metrics['loss/total'], metrics['loss/total'])

  @parameterized.parameters(80.0, -80.0, 1e4, -1e4)
  def test_ratio_spike_is_clamped_counted_and_survived(self, spike):

    def add(logprobs, _):
      logprobs[:, 0] += spike
      return logprobs

    state, metrics = self._learn(rollout=self._with_logprobs(add))
    self.assertGreater(metrics['ratio/clamped_frac'], 0.1)
    self.assertEmpty({'loss', 'gradient', 'update'} & set(self._skips(metrics)))
    scores = task_lib.Score(self.reward, jnp.zeros(32))
    _, after = _learn(
      self.static,
      state,
      self.hparams,
      _collect(self.static, state, self.hparams),
      scores,
      _NO,
    )
    self.assertEmpty(self._skips(jax.device_get(after)))

  def test_rows_without_tokens_and_a_batch_without_any(self):
    empty = self.rollout._replace(
      mask=self.rollout.mask.at[::2].set(False),
      valid=self.rollout.valid.at[::2, 6:].set(False),
    )
    _, metrics = self._learn(rollout=empty)
    self.assertEmpty(self._skips(metrics))
    none = self.rollout._replace(
      mask=jnp.zeros_like(self.rollout.mask),
      valid=self.rollout.valid.at[:, 6:].set(False),
    )
    state, metrics = self._learn(rollout=none)
    self.assertEqual(self._skips(metrics), {'no_signal': 4})
    chex.assert_trees_all_equal(state.params, self.state.params)

  def test_one_token_responses_train(self):
    first = jnp.arange(self.rollout.mask.shape[1]) == 0
    short = self.rollout._replace(
      mask=self.rollout.mask & first,
      valid=self.rollout.valid.at[:, 7:].set(False),
    )
    _, metrics = self._learn(rollout=short)
    self.assertEmpty(self._skips(metrics))
    self.assertEqual(metrics['log_ratio/last_update_sigma'], 0)
    self.assertEqual(metrics['agm/gap'], 0)

  def test_attention_statistic_that_is_not_finite_is_skipped(self):
    params = jax.tree.map(lambda x: x, self.state.params)
    query = params['layers']['attention']['query']
    query['kernel'] = query['kernel'].at[0, 0, 0, 0].set(jnp.inf)
    state, metrics = _learn(
      self.static,
      self.state._replace(params=params),
      self.hparams,
      self.rollout,
      task_lib.Score(self.reward, jnp.zeros(32)),
      _NO,
    )
    self.assertEqual(
      sum(
        int(metrics[f'skipped/{cause}']) for cause in ('logprob', 'statistic')
      ),
      4,
    )
    chex.assert_trees_all_equal(state.params, params)


if __name__ == '__main__':
  absltest.main()
