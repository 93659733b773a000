"""When an update is skipped, and that nothing moves then."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.optim import factory
from hmpo_jax.training import update
from tests import small

_update = jax.jit(update.update, static_argnums=0)


def _learned(state):
  return update.Learned(state.params, state.opt_state, state.controls)


def _cause(reports):
  return (*update.SKIP_CAUSES, 'none')[int(reports.cause)]


class SkipTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.static, self.hparams, self.state = small.start(small.config())
    self.batch = small.batch(self.static, self.state, self.hparams)
    # One sound update, so that the momentum is not zero.
    self.learned, reports = _update(
      self.static, _learned(self.state), self.hparams, self.batch
    )
    self.assertEqual(_cause(reports), 'none')

  def _assert_skipped(self, batch, cause, times=1, **changes):
    before = self.learned._replace(**changes)
    after = before
    for _ in range(times):
      after, reports = _update(self.static, after, self.hparams, batch)
      self.assertEqual(_cause(reports), cause)
      self.assertEqual(reports.metrics['update/norm'], 0)
      np.testing.assert_array_equal(reports.effective, 0)
    chex.assert_trees_all_equal(after, before)

  def test_fifty_batches_without_signal_move_nothing(self):
    silent = self.batch._replace(
      advantages=jnp.zeros_like(self.batch.advantages)
    )
    self._assert_skipped(silent, 'no_signal', times=50)

  def test_all_rows_clipped_is_no_signal(self):
    # A < 0 and a ratio of e^-1 stop every row at the low side.
    clipped = self.batch._replace(
      advantages=-jnp.ones_like(self.batch.advantages),
      old_logprobs=self.batch.old_logprobs + 1,
    )
    self._assert_skipped(clipped, 'no_signal')

  def test_all_rows_masked_is_no_signal(self):
    masked = self.batch._replace(mask=jnp.zeros_like(self.batch.mask))
    self._assert_skipped(masked, 'no_signal')

  def test_one_live_row_is_a_signal(self):
    advantages = jnp.zeros_like(self.batch.advantages).at[3].set(1)
    after, reports = _update(
      self.static,
      self.learned,
      self.hparams,
      self.batch._replace(advantages=advantages),
    )
    self.assertEqual(_cause(reports), 'none')
    change = after.params['embed'] - self.learned.params['embed']
    self.assertGreater(np.abs(change).max(), 0)

  def test_no_signal_does_not_hide_the_pull_of_the_kl(self):
    config = small.config(loss__kl_estimator='k3', loss__kl_weight=0.5)
    static, hparams, state = small.start(config)
    batch = small.batch(static, state, hparams)
    silent = batch._replace(
      advantages=jnp.zeros_like(batch.advantages),
      ref_logprobs=batch.old_logprobs - 0.3,
    )
    _, reports = _update(static, _learned(state), hparams, silent)
    self.assertEqual(_cause(reports), 'none')

  @parameterized.parameters(jnp.nan, jnp.inf)
  def test_reward_that_is_not_finite(self, value):
    bad = self.batch._replace(advantages=self.batch.advantages.at[0].set(value))
    self._assert_skipped(bad, 'reward')

  @parameterized.parameters(jnp.nan, -jnp.inf)
  def test_logprob_that_is_not_finite(self, value):
    bad = self.batch._replace(
      old_logprobs=self.batch.old_logprobs.at[0, 0].set(value)
    )
    self._assert_skipped(bad, 'logprob')

  def test_masked_values_that_are_not_finite_do_no_harm(self):
    mask = self.batch.mask.at[0].set(False)
    old = jnp.where(mask, self.batch.old_logprobs, jnp.nan)
    clean = self.batch._replace(mask=mask)
    results = [
      _update(self.static, self.learned, self.hparams, batch)
      for batch in (clean, clean._replace(old_logprobs=old))
    ]
    chex.assert_trees_all_equal(results[0][0].params, results[1][0].params)

  def test_parameters_that_are_not_finite_name_the_first_symptom(self):
    params = jax.tree.map(lambda x: x, self.learned.params)
    params['layers']['attention']['query']['kernel'] *= jnp.nan
    self._assert_skipped(self.batch, 'logprob', params=params)


class SummariseTest(absltest.TestCase):
  def test_numerical_skips_count_in_no_mean(self):
    none = len(update.SKIP_CAUSES)
    values = jnp.array([1.0, jnp.nan, 3.0])
    metrics = update.summarise(
      update.Reports(
        metrics={
          'loss/total': values,
          'ratio/max': values,
          'log_ratio/abs_max': values,
          'log_ratio/row_variance': values,
          'qk/over_monitor_tau_frac': jnp.array([0.0, 1.0, 0.0]),
          'nonfinite/logprobs': jnp.array([0.0, 2.0, 1.0]),
        },
        max_logits=jnp.ones((3, 2, 4)),
        effective=jnp.zeros((3, 5)),
        cause=jnp.array([none, 3, none]),
      )
    )
    self.assertEqual(metrics['loss/total'], 2)
    self.assertEqual(metrics['ratio/max'], 3)
    self.assertEqual(metrics['nonfinite/logprobs'], 3)
    self.assertAlmostEqual(metrics['qk/over_monitor_tau_frac'], 1 / 3)
    self.assertEqual(metrics['skipped/loss'], 1)
    self.assertEqual(metrics['skipped/no_signal'], 0)
    self.assertEqual(metrics['qk/max_logit_per_head'].shape, (2, 4))
    self.assertEqual(metrics['qk/max_logit_per_update'].shape, (3,))


class MicrobatchesTest(absltest.TestCase):
  def test_update_equals_that_of_the_full_batch(self):
    # All terms of the loss, each divided by the tokens of the whole batch.
    options = {
      'loss__name': 'grpo',
      'loss__aggregation': 'token-mean',
      'loss__clip_eps_low': 0.2,
      'loss__clip_eps_high': 0.2,
      'loss__kl_estimator': 'k3',
      'loss__kl_weight': 0.1,
      'loss__entropy_bonus': True,
      'loss__entropy_weight': 0.01,
      'optim__qk_clip': 'weights',
      'optim__tau': 0.001,
    }

    def run(count):
      static, hparams, state = small.start(
        small.config(train__num_microbatches=count, **options)
      )
      batch = small.batch(static, state, hparams)
      learned, reports = _update(static, _learned(state), hparams, batch)
      self.assertEqual(_cause(reports), 'none')
      self.assertEqual(reports.metrics['qk/clipped_frac'], 1)
      return learned.params, reports.metrics

    whole, metrics = run(1)
    micro, micro_metrics = run(4)
    # AdamW divides a gradient by its size: rounding of one near 0 shows.
    chex.assert_trees_all_close(micro, whole, atol=2e-5)
    for name in ('loss/total', 'kl/reference', 'policy/entropy', 'grad/norm'):
      np.testing.assert_allclose(
        micro_metrics[name], metrics[name], rtol=1e-5, atol=1e-7
      )


class MonitorTest(parameterized.TestCase):
  def _run(self, mode, monitor_tau, num_updates):
    static, hparams, state = small.start(
      small.config(
        optim__qk_clip=mode,
        optim__monitor_tau=monitor_tau,
        model__qk_norm=mode == 'gain',
      )
    )
    batch = small.batch(static, state, hparams)
    learned, rows = _learned(state), []
    for _ in range(num_updates):
      learned, reports = _update(static, learned, hparams, batch)
      rows.append(reports.metrics)
    return [
      np.array([row[name] for row in rows])
      for name in ('qk/over_monitor_tau_frac', 'qk/exploded', 'qk/clipped_frac')
    ]

  @parameterized.parameters('off', 'weights', 'gain')
  def test_tenth_update_in_a_row_is_an_explosion_in_every_mode(self, mode):
    over, exploded, clipped = self._run(mode, 1e-6, 11)
    np.testing.assert_array_equal(over, 1)
    np.testing.assert_array_equal(exploded, [0] * 9 + [1] * 2)
    np.testing.assert_array_equal(clipped, 0)  # tau is 100

  def test_logit_that_is_not_finite_is_over_but_no_update_that_was_made(self):
    static, hparams, state = small.start(small.config())
    batch = small.batch(static, state, hparams)
    params = jax.tree.map(lambda x: x * jnp.nan, state.params)
    learned, reports = _update(
      static, _learned(state)._replace(params=params), hparams, batch
    )
    self.assertNotEqual(_cause(reports), 'none')
    self.assertEqual(reports.metrics['qk/over_monitor_tau_frac'], 1)
    self.assertEqual(factory.clip_state(learned.opt_state).over_count, 0)

  def test_calm(self):
    over, exploded, _ = self._run('off', 100.0, 2)
    np.testing.assert_array_equal(over, 0)
    np.testing.assert_array_equal(exploded, 0)


if __name__ == '__main__':
  absltest.main()
