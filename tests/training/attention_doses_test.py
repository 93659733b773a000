"""Narrow logits and the entropy of attention, in an update and a warm start."""

import functools

from absl.testing import absltest
import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.config import traced
from hmpo_jax.training import policy
from hmpo_jax.training import update
from tests import small

# One program for all tests of updates.
_CHOICE = {
  'model__logits_dtype': 'float16',
  'model__attention_entropy': True,
  'train__num_microbatches': 2,
}
_update = jax.jit(update.update, static_argnums=0)


def _start(**choice):
  static, hparams, state = small.start(small.config(**choice))
  batch = small.batch(static, state, hparams)
  learned = update.Learned(state.params, state.opt_state, state.controls)
  return static, learned, hparams, batch


class UpdateTest(absltest.TestCase):
  def test_overflow_skips_the_update(self):
    static, learned, hparams, batch = _start(**_CHOICE)
    kernel = learned.params['layers']['attention']['query']['kernel']
    for scale, cause in ((1.0, 'none'), (1e7, 'logprob')):
      learned.params['layers']['attention']['query']['kernel'] = scale * kernel
      after, reports = _update(static, learned, hparams, batch)
      names = *update.SKIP_CAUSES, 'none'
      self.assertEqual(names[int(reports.cause)], cause)
    chex.assert_trees_all_equal(after, learned)
    # The statistic of the first layer is that of wide logits; what comes above
    # it is made of NaN.
    largest = np.asarray(reports.max_logits)
    self.assertTrue(np.all(np.isfinite(largest[0])))
    self.assertGreater(largest[0].max(), 65520)
    self.assertTrue(np.isnan(largest[1]).any())

  def test_entropies_are_those_of_the_whole_minibatch(self):
    static, learned, hparams, batch = _start(**_CHOICE)
    # Microbatches of unequal numbers of tokens.
    batch = batch._replace(valid=batch.valid.at[:3, :2].set(False))
    _, reports = _update(static, learned, hparams, batch)
    expected = jax.jit(policy.forward, static_argnums=0)(
      static, learned.params, batch.tokens, batch.valid, batch.mask, 1.0
    ).attention_entropy
    self.assertEqual(expected.shape, (2, 4))
    found = reports.metrics
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3)
    close(found['qk/entropy_per_head'], expected)
    close(found['qk/entropy'], expected.mean())
    close(found['qk/entropy_min'], expected.min())
    both = jax.tree.map(lambda x: jnp.stack([x, 3 * x]), reports)
    sound = jnp.full(2, len(update.SKIP_CAUSES))
    of_step = update.summarise(both._replace(cause=sound))
    close(of_step['qk/entropy_per_head'], 2 * expected)
    close(of_step['qk/entropy_min'], expected.min())

  def test_off_there_are_none(self):
    static, *arguments = _start()
    _, reports = jax.eval_shape(
      functools.partial(update.update, static), *arguments
    )
    self.assertFalse([name for name in reports.metrics if 'entropy_' in name])


class WarmStartTest(absltest.TestCase):
  def test_is_that_of_float32(self):
    configs = small.config(), small.config(**_CHOICE)
    parts = [traced.static(config) for config in configs]
    self.assertEqual(*(traced.of_warm_start(part).model for part in parts))
    self.assertNotEqual(*(part.model for part in parts))


if __name__ == '__main__':
  absltest.main()
