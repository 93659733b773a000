"""Properties of a whole step: rollout, advantages, updates, metrics."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np

from hmpo_jax.training import learner
from hmpo_jax.training import policy
from tests import small

_step = jax.jit(learner.train_step, static_argnums=0)
_collect = jax.jit(learner.collect, static_argnums=0)
_NO = jnp.asarray(False)


class TrainStepTest(parameterized.TestCase):
  def test_lagging_sampler_moves_the_first_ratio(self):
    _, records = small.steps(small.config(rollout__staleness=1), num=2)
    # Nothing to lag behind yet, but the ratio is computed, not set.
    self.assertLess(records[0]['ratio/first_update_abs_log'], 1e-5)
    self.assertGreater(records[1]['ratio/first_update_abs_log'], 1e-3)

  def test_sampler_lags_by_staleness_steps(self):
    states, _ = small.steps(small.config(rollout__staleness=2), num=4)
    for i in (2, 3, 4):
      oldest = jax.tree.map(lambda x: x[0], states[i].past_params)
      chex.assert_trees_all_equal(oldest, states[i - 2].params)

  def test_sampler_logprobs_as_old_logprobs(self):
    _, (record,) = small.steps(
      small.config(rollout__old_logprobs='sampler', rollout__top_k=4)
    )
    self.assertBetween(record['rollout/sampler_gap_max'], 1e-9, 1e-5)
    # Four of 14 tokens, drawn from while the logits are spread.
    self.assertBetween(record['rollout/kept_mass'], 4 / 14, 0.999)

  def test_mismatch_has_the_share_and_the_size_that_are_asked(self):
    static, hparams, state = small.start(
      small.config(rollout__old_logprobs='sampler', rollout__num_prompts=256)
    )
    told = lambda state, frac, size=0.5: np.asarray(
      _collect(
        static,
        state,
        hparams._replace(
          mismatch_frac=jnp.float32(frac), mismatch_size=jnp.float32(size)
        ),
      ).logprobs
    )
    right = _collect(static, state, hparams)
    mask = np.asarray(right.mask)
    gap = told(state, 0.25) - right.logprobs
    np.testing.assert_array_equal(gap[~mask], 0)
    # 2048 rows of six tokens: two errors of 12,000 draws are 1 %.
    for sign in (1, -1):
      share = np.mean(np.abs(gap[mask] - sign * 0.5) < 1e-5)
      self.assertAlmostEqual(share, 0.125, delta=0.01)
    self.assertAlmostEqual(np.mean(gap[mask] == 0), 0.75, delta=0.01)
    every = told(state, 1.0, 2.0) - right.logprobs
    np.testing.assert_allclose(np.abs(every[mask]), 2, rtol=1e-5)
    np.testing.assert_array_equal(told(state, 0.0), right.logprobs)
    # Drawn anew by step, and the same for the step of a run that goes on.
    np.testing.assert_array_equal(told(state, 0.25) - right.logprobs, gap)
    later = state._replace(step=state.step + 1)
    moved = told(later, 0.25) != told(later, 0.0)
    self.assertLess(np.mean(moved == (gap != 0)), 0.75)

  def test_mismatch_reaches_the_ratios_of_every_update(self):
    config = functools.partial(
      small.config, rollout__old_logprobs='sampler', optim__learning_rate=0.0
    )
    _, (right,) = small.steps(config())
    _, (wrong,) = small.steps(
      config(rollout__mismatch_frac=0.1, rollout__mismatch_size=0.7)
    )
    self.assertLess(right['log_ratio/abs_max'], 1e-5)
    for name in ('log_ratio/abs_max', 'rollout/sampler_gap_max'):
      self.assertAlmostEqual(float(wrong[name]), 0.7, places=4)
    # The responses and their rewards are those of a sampler without a fault.
    for name in ('rollout/digest', 'reward/mean'):
      self.assertEqual(wrong[name], right[name])

  def test_rollout_options_reach_the_sampler(self):
    options = {'top_k': 3, 'top_p': 0.5, 'bucket': 7}
    static, hparams, state = small.start(
      small.config(
        **{f'rollout__{key}': value for key, value in options.items()}
      )
    )
    with mock.patch.object(learner.sampling, 'sample') as sample:
      learner.collect(static, state, hparams)
    given = sample.call_args.kwargs
    self.assertEqual({key: given.get(key) for key in options}, options)

  def test_sampler_logprobs_save_a_pass(self):
    forward = policy.forward

    def passes(**overrides):
      static, *rest = small.start(small.config(**overrides))
      hparams, state = rest
      with mock.patch.object(policy, 'forward', side_effect=forward) as counted:
        jax.eval_shape(
          functools.partial(learner.train_step, static), state, hparams, _NO
        )
      return counted.call_count

    saved = passes() - passes(rollout__old_logprobs='sampler')
    self.assertEqual(saved, 1)

  def test_one_program_for_all_variants(self):
    traces = []

    def counted(static, *args):
      traces.append(1)
      return learner.train_step(static, *args)

    step = jax.jit(counted, static_argnums=0)
    variants = (
      {},
      {'loss__p': 0.5, 'loss__p_clip': 0.0},
      {'exponent__kind': 'learnable'},
      {'exponent__kind': 'cosine', 'tracking__rate': 0.5},
      {'loss__clip_eps_low': 0.2, 'loss__clip_eps_high': 0.3},
      {'optim__tau': 5.0},
      {
        'optim__learning_rate': 0.0,
        'optim__weight_decay': 0.1,
        'optim__monitor_tau': 0.5,
      },
      {'advantage__permute': True, 'rollout__temperature': 0.7},
    )
    for seed, variant in enumerate(variants):
      config = small.config(mechanism__every=1 + seed, **variant)
      static, hparams, state = small.start(config, seed)
      state, _ = step(static, state, hparams, _NO)
      step(static, state, hparams, jnp.asarray(True))
    self.assertLen(traces, 1)
    self.assertEqual(step._cache_size(), 1)

  def test_all_means_are_equal_after_one_update(self):
    one = functools.partial(
      small.config, train__num_epochs=1, train__num_minibatches=1
    )
    states = [
      small.steps(one(loss__p=p), num=3)[0][-1] for p in (1.0, 0.0, -1.0)
    ]
    for state in states[1:]:
      chex.assert_trees_all_equal(state.params, states[0].params)

  def test_means_differ_once_rollouts_are_reused(self):
    first, second = (
      small.steps(small.config(loss__p=p))[0][-1].params['embed']
      for p in (0.0, -1.0)
    )
    self.assertGreater(np.abs(first - second).max(), 1e-6)

  def test_seed_decides_everything(self):
    _, (first,) = small.steps(small.config())
    _, (again,) = small.steps(small.config())
    _, (other,) = small.steps(small.config(), seed=1)
    for key, value in first.items():
      np.testing.assert_array_equal(value, again[key], key)
    self.assertNotEqual(first['policy/entropy'], other['policy/entropy'])

  def test_learning_rate_zero_moves_nothing(self):
    states, (record,) = small.steps(small.config(optim__learning_rate=0.0))
    chex.assert_trees_all_equal(states[0].params, states[1].params)
    self.assertEqual(record['update/norm'], 0)
    self.assertGreater(record['grad/norm'], 0)

  def test_permuted_advantages_keep_their_variance(self):
    _, (plain,) = small.steps(small.config())
    _, (permuted,) = small.steps(small.config(advantage__permute=True))
    key = 'advantage/abs_mean'
    self.assertEqual(plain[key], permuted[key])
    self.assertNotEqual(plain['grad/norm'], permuted['grad/norm'])

  def test_masked_truncated_responses_are_not_trained(self):
    _, (plain,) = small.steps(small.config())
    _, (masked,) = small.steps(small.config(rollout__mask_truncated=True))
    self.assertGreater(plain['rollout/truncated_frac'], 0.2)
    self.assertLess(masked['loss/live_frac'], plain['loss/live_frac'])

  @parameterized.parameters('k2', 'k3')
  def test_kl_holds_the_policy_near_the_reference(self, estimator):
    distances = []
    for weight in (0.0, 30.0):
      config = small.config(
        loss__kl_estimator=estimator,
        loss__kl_weight=weight,
        optim__learning_rate=1e-3,
      )
      states, records = small.steps(config, num=3)
      chex.assert_trees_all_equal(states[-1].reference, states[0].params)
      distances.append(records[-1]['kl/reference'])
    self.assertGreater(distances[1], 0)
    self.assertLess(distances[1], 0.7 * distances[0])

  def test_what_was_measured_stays_until_the_next(self):
    static, hparams, state = small.start(
      small.config(
        optim__qk_clip='weights', optim__tau=0.01, mechanism__every=1
      )
    )
    _, unmeasured = _step(static, state, hparams, _NO)
    state, measured = _step(static, state, hparams, jnp.asarray(True))
    state, held = _step(static, state, hparams, _NO)
    self.assertBetween(measured['mechanism/cosine_unclipped'], 0.2, 0.9999)
    self.assertGreater(measured['mechanism/sigma'], 0.01)
    self.assertGreater(measured['qk/clip_drift_abs_max'], 1e-4)
    self.assertEqual(measured['mechanism/step'], 1)
    for name in (
      'mechanism/sigma',
      'mechanism/cosine_current_p0',
      'mechanism/step',
      'qk/clip_drift_k3',
      'qk/clip_drift_abs_max',
    ):
      self.assertEqual(unmeasured[name], 0)
      self.assertEqual(held[name], measured[name])

  def test_lowers_for_every_platform(self):
    config = small.config(
      optim__name='muon_clip', optim__qk_clip='weights', mechanism__every=1
    )
    static, hparams, state = small.start(config)

    def step(key_data, state, hparams, measure):
      state = state._replace(key=jax.random.wrap_key_data(key_data))
      state, metrics = learner.train_step(static, state, hparams, measure)
      return state._replace(key=jax.random.key_data(state.key)), metrics

    export = jax_export.export(jax.jit(step), platforms=('cpu', 'cuda', 'tpu'))
    exported = export(
      jax.random.key_data(state.key), state._replace(key=()), hparams, _NO
    )
    self.assertEqual(exported.platforms, ('cpu', 'cuda', 'tpu'))


if __name__ == '__main__':
  absltest.main()
