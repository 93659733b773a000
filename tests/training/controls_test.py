"""What evolves beside the parameters, and what a step makes of rewards."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmpo_jax.optim import factory
from hmpo_jax.tasks import task as task_lib
from hmpo_jax.training import learner
from hmpo_jax.training import update
from tests import small

_collect = jax.jit(learner.collect, static_argnums=0)
_prepare = jax.jit(learner.prepare, static_argnums=0)
_learn = jax.jit(learner.learn, static_argnums=0)
_update = jax.jit(update.update, static_argnums=0)
_NO = jnp.asarray(False)


def _run(num, **overrides):
  return small.steps(small.config(**overrides), num)


def _off_policy(static, hparams, state, sigma):
  """What an update starts from, and a batch whose log-ratios scatter."""
  batch = small.batch(static, state, hparams)
  noise = sigma * jax.random.normal(jax.random.key(1), batch.mask.shape)
  return (
    learner.at_first_update(hparams, state),
    batch._replace(old_logprobs=batch.old_logprobs + noise),
  )


class ExponentTest(parameterized.TestCase):
  def test_fixed_order_is_the_one_of_the_configuration(self):
    states, records = _run(2, loss__p=0.5)
    for record in records:
      self.assertEqual(record['mean/p'], 0.5)
    self.assertEqual(states[-1].controls.exponent.p, 0.5)

  @parameterized.parameters('linear', 'cosine')
  def test_schedule_is_used_by_the_step_that_it_is_for(self, kind):
    _, records = _run(
      5,
      loss__p=2.0,
      exponent__kind=kind,
      exponent__end=-2.0,
      exponent__num_steps=4.0,
    )
    between = 2**0.5 if kind == 'cosine' else 1
    np.testing.assert_allclose(
      [record['mean/p'] for record in records],
      [2, between, 0, -between, -2],
      atol=1e-6,
    )

  @parameterized.parameters(False, True)
  def test_learnable_order_follows_its_gradient_or_goes_against_it(
    self, placebo
  ):
    settings = {'exponent__rate': 100.0, 'exponent__placebo': placebo}
    static, hparams, state = small.start(
      small.config(exponent__kind='learnable', **settings)
    )
    learned, batch = _off_policy(static, hparams, state, 0.02)
    after, reports = _update(static, learned, hparams, batch)
    change = after.controls.exponent.p - learned.controls.exponent.p
    gradient = reports.metrics['exponent/gradient']
    self.assertNotEqual(gradient, 0)
    np.testing.assert_allclose(
      change, (-100 if placebo else 100) * gradient, rtol=1e-3
    )

    def loss(p):
      # The same loss with its order given.
      start = hparams._replace(exponent=hparams.exponent._replace(start=p))
      _, reports = _update(
        static,
        learner.at_first_update(
          start, state._replace(controls=update.start_controls(start))
        ),
        start,
        batch,
      )
      return np.float64(reports.metrics['loss/total'])

    numeric = -(loss(jnp.float32(-0.9)) - loss(jnp.float32(-1.1))) / 0.2
    np.testing.assert_allclose(gradient, numeric, rtol=0.05)

  def test_skipped_update_leaves_the_order(self):
    static, hparams, state = small.start(
      small.config(exponent__kind='learnable', exponent__pull=1.0)
    )
    batch = small.batch(static, state, hparams)
    silent = batch._replace(advantages=jnp.zeros_like(batch.advantages))
    learned = learner.at_first_update(hparams, state)
    after, _ = _update(static, learned, hparams, silent)
    chex.assert_trees_all_equal(after, learned)

  def test_matched_orders_lie_between_the_geometric_and_the_arithmetic(self):
    _, records = _run(2, exponent__kind='matched', loss__clip='token')
    for record in records:
      self.assertBetween(record['mean/p'], 0, 1)
      self.assertGreater(record['mean/p'], 0.1)

  def test_adaptive_order_steps_once_a_rollout_and_says_so(self):
    states, records = _run(
      4,
      loss__p=0.0,
      exponent__kind='adaptive',
      exponent__gap_low=1e3,
      exponent__gap_high=1e3,
      exponent__trend=1e3,
      exponent__step_size=0.25,
    )
    self.assertEqual([r['exponent/decision'] for r in records], [1] * 4)
    self.assertEqual([r['mean/p'] for r in records], [0, 0.25, 0.5, 0.75])
    self.assertEqual(states[-1].controls.exponent.p, 1)
    self.assertGreater(records[-1]['exponent/gap_fast'], 0)


class DecayTest(absltest.TestCase):
  def test_by_hand(self):
    hparams = small.start(
      small.config(
        optim__name='muon_clip',
        optim__learning_rate=8.0,
        optim__adam_learning_rate=4.0,
        optim__decay=0.25,
        optim__decay_steps=3.0,
      )
    )[1]
    for step, factor in enumerate((1, 0.75, 0.5, 0.25, 0.25)):
      at_step = factory.rates_at(hparams, jnp.int32(step))
      np.testing.assert_allclose(
        (at_step.learning_rate, at_step.adam_learning_rate),
        (8 * factor, 4 * factor),
        rtol=1e-6,
      )

  def test_off_leaves_every_bit(self):
    rate = 0.1 * np.pi
    hparams = small.start(small.config(optim__learning_rate=rate))[1]
    for step in (0, 7, 10**6):
      at_step = factory.rates_at(hparams, jnp.int32(step))
      chex.assert_trees_all_equal(at_step, hparams)

  def test_steps_at_a_rate_of_0_learn_nothing(self):
    still, moving = (
      _run(2, optim__decay=decay, optim__decay_steps=1.0)[0]
      for decay in (0.0, 0.5)
    )
    distance = lambda a, b: float(
      optax.tree.norm(optax.tree.sub(a.params, b.params))
    )
    self.assertGreater(distance(still[1], still[0]), 0)
    self.assertEqual(distance(still[2], still[1]), 0)
    self.assertGreater(distance(moving[2], moving[1]), 0)


class TrackingTest(absltest.TestCase):
  def test_ranges_follow_their_targets(self):
    shared = {'loss__clip_eps_low': 0.01, 'loss__clip_eps_high': 0.01}
    _, fixed = _run(3, **shared)
    _, records = _run(
      3,
      tracking__rate=1.0,
      tracking__target_low=0.0,
      tracking__target_high=1.0,
      **shared,
    )
    self.assertEqual(fixed[0]['clip/eps_low'], np.float32(0.01))
    self.assertEqual(fixed[2]['clip/eps_low'], np.float32(0.01))
    # More is clipped low than wanted, and less high.
    self.assertGreater(records[2]['clip/eps_low'], 0.011)
    self.assertLess(records[2]['clip/eps_high'], 0.009)
    self.assertLess(records[2]['clip/low_frac'], fixed[2]['clip/low_frac'])

  def test_step_uses_the_last_half_of_its_updates(self):
    shares = {
      'clip/low_frac': [9.0, 0.1, 0.3],
      'clip/high_frac': [9.0, 0.0, 0.0],
    }
    ones = {'agm/log_gap': jnp.zeros(4)}
    ones |= {
      f'advantage/{s}_frac': jnp.ones(4) for s in ('negative', 'positive')
    }
    shares = {k: jnp.array([9.0] + v) for k, v in shares.items()}
    static, hparams, state = small.start(
      small.config(tracking__rate=1.0, tracking__target_low=0.2)
    )
    del static
    reports = update.Reports(
      shares | ones,
      jnp.zeros((4, 1, 1)),
      jnp.zeros((4, 1)),
      jnp.full(4, len(update.SKIP_CAUSES)),
    )
    controls, _ = learner._end_step(hparams, state.controls, reports)
    np.testing.assert_allclose(controls.widths.eps_low, 0.05, rtol=1e-6)
    np.testing.assert_allclose(
      controls.widths.eps_high, 0.05 * np.exp(-0.2), rtol=1e-6
    )


class RewardTest(parameterized.TestCase):
  def _prepare(self, reward, **overrides):
    static, hparams, state = small.start(small.config(**overrides))
    rollout = _collect(static, state, hparams)
    scores = task_lib.Score(jnp.asarray(reward, jnp.float32), jnp.zeros(32))
    return static, state, hparams, rollout, scores

  def test_every_row_keeps_its_advantage_and_its_group(self):
    args = self._prepare(np.arange(32) % 8 * (1 + np.arange(32) // 8))
    batch, _, _ = _prepare(*args)
    rollout = args[3]
    rank = {
      tuple(tokens): (i // 8, i % 8)
      for i, tokens in enumerate(np.asarray(rollout.tokens).tolist())
    }
    self.assertGreater(len(rank), 24)
    for tokens, group, advantage in zip(
      np.asarray(batch.tokens).tolist(), batch.group, batch.advantages
    ):
      self.assertEqual(group, rank[tuple(tokens)][0])
      if len(rank) == 32:
        self.assertAlmostEqual(
          advantage, (rank[tuple(tokens)][1] - 3.5) / 6**0.5, places=5
        )

  def test_kl_to_the_anchor_is_taken_from_the_reward(self):
    free = self._prepare(np.zeros(32))
    batch, _, _ = _prepare(*free)
    np.testing.assert_array_equal(batch.advantages, 0)
    static, state, hparams, rollout, scores = self._prepare(
      np.zeros(32),
      reward__kl_estimator='k1',
      reward__kl_weight=0.5,
      advantage__scale='none',
    )
    other = jax.tree.map(lambda x: 1.5 * x, state.reference)
    batch, _, metrics = _prepare(
      static, state._replace(reference=other), hparams, rollout, scores
    )
    gap = np.where(batch.mask, batch.old_logprobs - batch.ref_logprobs, 0)
    sums = np.zeros(4)
    np.add.at(sums, batch.group, gap.sum(1))
    np.testing.assert_allclose(
      batch.advantages, -0.5 * (gap.sum(1) - sums[batch.group] / 8), atol=1e-5
    )
    np.testing.assert_allclose(
      metrics['reward/kl'], gap.sum(1).mean(), rtol=1e-5
    )

  def test_rewards_that_are_not_finite_can_be_left_out(self):
    reward = np.tile(np.linspace(0, 1, 8), 4)
    reward[3] = np.nan
    args = self._prepare(reward, reward__exclude_nonfinite=True)
    _, metrics = _learn(*args, _NO)
    self.assertEqual(metrics['skipped/reward'], 0)
    self.assertEqual(metrics['advantage/nonfinite_rewards'], 1)
    self.assertAlmostEqual(
      float(metrics['reward/mean']), np.nanmean(reward), places=6
    )

  def test_rewards_without_one_that_is_finite_are_a_fault_all_the_same(self):
    args = self._prepare(np.full(32, np.nan), reward__exclude_nonfinite=True)
    _, metrics = _learn(*args, _NO)
    self.assertEqual(metrics['skipped/reward'], 4)

  def test_effective_advantages_of_one_update_per_epoch_sum_to_zero(self):
    reward = np.tile(np.linspace(0, 1, 8), 4)
    one = {'train__num_minibatches': 1, 'train__num_epochs': 1}
    _, on_policy = _learn(*self._prepare(reward, **one), _NO)
    self.assertLess(on_policy['advantage/effective_group_sum'], 1e-5)
    _, reused = _learn(*self._prepare(reward), _NO)
    self.assertGreater(reused['advantage/effective_group_sum'], 1e-3)

  def test_effective_advantage_of_a_row(self):
    static, hparams, state = small.start(small.config(loss__p=-1.0))
    learned, batch = _off_policy(static, hparams, state, 0.05)
    _, reports = _update(static, learned, hparams, batch)
    live = reports.effective != 0
    ratio = np.where(live, reports.effective / batch.advantages, 1)
    self.assertBetween(np.mean(live), 0.3, 0.99)
    self.assertBetween(ratio.min(), 0.85, 1)
    self.assertBetween(ratio.max(), 1, 1.15)
    np.testing.assert_allclose(
      np.sum(reports.effective) / np.sum(live),
      reports.metrics['advantage/effective_mean'],
      rtol=1e-4,
    )

  def test_entropy_bonus_raises_the_entropy(self):
    bonus = {'loss__entropy_bonus': True, 'train__num_epochs': 1}
    _, without = _run(4, loss__entropy_weight=0.0, **bonus)
    _, records = _run(4, loss__entropy_weight=10.0, **bonus)
    self.assertGreater(
      records[-1]['policy/entropy'], without[-1]['policy/entropy'] + 0.01
    )


if __name__ == '__main__':
  absltest.main()
