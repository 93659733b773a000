"""Controls of an experiment plan: what must be equal, and what must not learn.

With one update per rollout every ratio is 1, so that the order of the mean may
not change a bit; a QK-clip that is never due is none; and what advantages say
of their responses is all that a policy learns from.
"""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmpo_jax.tasks import task as task_lib
from hmpo_jax.training import learner
from hmpo_jax.training import policy
from hmpo_jax.training import run_axis
from hmpo_jax.training import update
from tests import small

_step = jax.jit(learner.train_step, static_argnums=0)
_evaluate = jax.jit(learner.evaluate, static_argnums=0)
_update = jax.jit(update.update, static_argnums=0)

_ONE_UPDATE = {'train__num_epochs': 1, 'train__num_minibatches': 1}
# Below the logits of the first update: the clip acts.
_CLIP = {'optim__qk_clip': 'weights', 'optim__tau': 0.01}


def _run(num, **overrides):
  """Parameters after `num` steps, and each step's metrics by name, stacked."""
  static, hparams, state = small.start(small.config(**overrides))
  records = []
  for _ in range(num):
    state, metrics = _step(static, state, hparams, jnp.asarray(False))
    records.append(metrics)
  return state.params, jax.device_get(run_axis.stack(records))


def _updates(num, noise=0.0, **overrides):
  """Parameters after updates on one batch, and each one's metrics, stacked.

  The old log-probabilities are off by `noise` nats times a normal number.
  """
  static, hparams, state = small.start(small.config(**overrides))
  batch = small.batch(static, state, hparams)
  off = noise * jax.random.normal(jax.random.key(1), batch.mask.shape)
  batch = batch._replace(old_logprobs=batch.old_logprobs + off)
  learned, records = learner.at_first_update(hparams, state), []
  for _ in range(num):
    learned, reports = _update(static, learned, hparams, batch)
    records.append(reports.metrics)
  return learned.params, jax.device_get(run_axis.stack(records))


class OneUpdateTest(parameterized.TestCase):
  def _assert_no_order_matters(self, name):
    run = functools.partial(_run, 50, optim__name=name, **_ONE_UPDATE, **_CLIP)
    expected, metrics = run(loss__p=1.0)
    self.assertGreater(np.sum(metrics['qk/clipped_frac']), 1)
    self.assertEqual(np.sum(metrics['skipped/no_signal']), 0)
    for p in (0.0, -1.0, 0.3):
      params, metrics = run(loss__p=p)
      np.testing.assert_allclose(metrics['mean/p'], p, rtol=1e-6)
      chex.assert_trees_all_equal(params, expected)

  def test_every_order_is_the_same_algorithm_to_the_bit(self):
    self._assert_no_order_matters('adamw')

  @pytest.mark.long
  def test_every_order_is_the_same_algorithm_under_muon_clip(self):
    self._assert_no_order_matters('muon_clip')


class InfiniteTauTest(parameterized.TestCase):
  def _assert_no_clip(self, run):
    clipped, metrics = run(**_CLIP)
    self.assertGreater(np.sum(metrics['qk/clipped_frac']), 1)
    params, metrics = run(**_CLIP | {'optim__tau': math.inf})
    np.testing.assert_array_equal(metrics['qk/factor_min'], 1)
    expected, _ = run(optim__qk_clip='off')
    chex.assert_trees_all_equal(params, expected)
    with self.assertRaises(AssertionError):
      chex.assert_trees_all_equal(params, clipped)

  def test_is_no_clip_to_the_bit(self):
    self._assert_no_clip(
      functools.partial(_updates, 4, optim__name='muon_clip')
    )

  @parameterized.parameters('muon_clip', 'adamw')
  @pytest.mark.long
  def test_is_no_clip_in_whole_steps(self, name):
    self._assert_no_clip(functools.partial(_run, 5, optim__name=name))


class LearningTest(absltest.TestCase):
  def _rewards(self, num, **overrides):
    """Held-out rewards before and after training, with standard errors."""
    static, _, state = small.start(small.config(**overrides))
    task = policy.make_task(static)
    prompts = jnp.asarray(task_lib.held_out_prompts(task, 256))
    params, _ = _run(num, **overrides)
    values = [_evaluate(static, p, prompts) for p in (state.params, params)]
    return [
      (float(value['eval/reward']), float(value['eval/reward_stderr']))
      for value in values
    ]

  def test_only_advantages_that_belong_to_their_responses_teach(self):
    (start, _), (end, error) = self._rewards(60)
    self.assertGreater(end, start + 5 * error)
    (again, _), (end, error) = self._rewards(60, advantage__permute=True)
    self.assertEqual(again, start)
    self.assertLess(end, start + 3 * error)


class NoClipTest(absltest.TestCase):
  def test_gspo_without_a_clip_never_clips(self):
    # As low as the lower end of a clip range can be: it must stay below 1.
    open_range = {
      'loss__clip_eps_low': 1 - 2.0**-20,
      'loss__clip_eps_high': math.inf,
    }
    for clip, is_open in ((open_range, True), ({}, False)):
      params, metrics = _run(3, loss__p=0.0, **clip)
      chex.assert_tree_all_finite(params)
      self.assertGreater(np.max(metrics['log_ratio/abs_max']), 0.1)
      stopped = metrics['clip/low_frac'] + metrics['clip/high_frac']
      self.assertEqual(np.all(stopped == 0), is_open)
      self.assertEqual(np.all(stopped > 0), not is_open)

  def test_reinforce_knows_no_ratio(self):
    run = functools.partial(_updates, 3, loss__name='reinforce')
    params, metrics = run(noise=0.3)
    chex.assert_tree_all_finite(params)
    self.assertGreater(np.min(metrics['update/norm']), 0)
    self.assertGreater(np.min(metrics['log_ratio/abs_max']), 0.3)
    for side in ('low', 'high'):
      np.testing.assert_array_equal(metrics[f'clip/{side}_frac'], 0)
    chex.assert_trees_all_equal(params, run(noise=0.0)[0])


if __name__ == '__main__':
  absltest.main()
