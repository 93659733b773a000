"""How far a QK-clip moves the policy, against an update without the clip."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.optim import factory
from hmpo_jax.training import clip_drift
from hmpo_jax.training import learner
from hmpo_jax.training import policy
from hmpo_jax.training import update
from tests import small

_update = jax.jit(update.update, static_argnums=0)
_measure = jax.jit(clip_drift.measure, static_argnums=0)
_forward = jax.jit(policy.forward, static_argnums=0)
_batch = jax.jit(small.batch, static_argnums=0)


@functools.cache
def _start(qk_clip):
  """Static part, hyperparameters and a state with large attention logits."""
  static, hparams, state = small.start(
    small.config(
      optim__qk_clip=qk_clip,
      model__qk_norm=qk_clip == 'gain',
      mechanism__every=1,
    )
  )
  if qk_clip != 'off':
    hparams = hparams._replace(qk_alpha=jnp.float32(0.3))
  attention = state.params['layers']['attention']
  for name in ('query', 'key'):
    attention[name]['kernel'] *= 8
    if f'{name}_norm' in attention:
      attention[f'{name}_norm'] = jax.tree.map(
        lambda x: 3 * x, attention[f'{name}_norm']
      )
  return static, hparams, state


class ClipDriftTest(parameterized.TestCase):
  def _updated(self, share):
    """Batch, and the update with tau = a share of the largest logit."""
    static, hparams, state = _start('weights')
    batch = _batch(static, state, hparams)
    learned = update.Learned(state.params, state.opt_state, state.controls)
    _, reports = _update(static, learned, hparams, batch)
    hparams = hparams._replace(tau=share * jnp.max(reports.max_logits))
    return batch, functools.partial(_update, static, learned), hparams

  def test_equals_the_update_without_a_clip(self):
    static, *_ = _start('weights')
    batch, run, hparams = self._updated(0.5)
    (after, reports), (before, _) = (
      run(hparams._replace(tau=tau), batch)
      for tau in (hparams.tau, jnp.float32(jnp.inf))
    )
    logprobs = [
      np.float64(
        _forward(
          static,
          learned.params,
          batch.tokens,
          batch.valid,
          batch.mask,
          hparams.temperature,
        ).logprobs
      )
      for learned in (after, before)
    ]
    change = np.where(batch.mask, logprobs[0] - logprobs[1], 0)
    k3 = np.sum(np.expm1(change) - change, axis=1) / np.sum(batch.mask, axis=1)
    values = _measure(static, after, hparams, batch, reports.cause)
    self.assertCountEqual(values, clip_drift.keys(static))
    largest = np.max(np.abs(change))
    self.assertGreater(largest, 1e-3)
    np.testing.assert_allclose(
      values['qk/clip_drift_k3'], np.mean(k3), rtol=1e-2
    )
    np.testing.assert_allclose(
      values['qk/clip_drift_abs_max'], largest, rtol=1e-2
    )

  def test_is_0_where_nothing_was_clipped(self):
    static, *_ = _start('weights')
    batch, run, hparams = self._updated(1.0)
    learned, reports = run(hparams, batch)
    values = _measure(static, learned, hparams, batch, reports.cause)
    self.assertEqual(list(map(float, values.values())), [0, 0])

  def test_is_0_where_the_update_was_skipped(self):
    static, *_ = _start('weights')
    batch, run, hparams = self._updated(0.5)
    learned, _ = run(hparams, batch)
    clip = factory.clip_state(learned.opt_state)
    self.assertLess(np.min(clip.last_factor), 1)
    for name in ('loss', 'no_signal'):
      cause = jnp.int32(update.SKIP_CAUSES.index(name))
      values = _measure(static, learned, hparams, batch, cause)
      self.assertEqual(list(map(float, values.values())), [0, 0])

  @parameterized.parameters(('weights', True), ('gain', True), ('off', False))
  def test_is_in_a_step_with_a_clip(self, qk_clip, is_there):
    static, hparams, state = _start(qk_clip)
    step = functools.partial(learner.train_step, static)
    _, metrics = jax.eval_shape(step, state, hparams, jnp.asarray(True))
    for name in ('qk/clip_drift_k3', 'qk/clip_drift_abs_max'):
      self.assertEqual(name in metrics, is_there)


if __name__ == '__main__':
  absltest.main()
