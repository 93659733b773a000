"""The comparison of means against gradients computed one at a time."""

import functools

from absl.testing import absltest
import jax
from jax import flatten_util
import jax.numpy as jnp
import numpy as np

from hmpo_jax import base
from hmpo_jax import mechanism
from hmpo_jax import partition
from hmpo_jax import policy
from hmpo_jax import update
from hmpo_jax.kernels import losses
from hmpo_jax.model import transformer
from tests import small

_compare = jax.jit(mechanism.compare_means, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _gradient(static, params, hparams, batch, p, low, high):
  """The gradient of one power-mean loss as one vector; and logprobs."""

  def loss(params):
    logprobs, *_ = policy.forward(static, params, batch.tokens, batch.valid,
                                  batch.mask, hparams.temperature)
    value, _ = losses.power_mean_loss(
        logprobs,
        batch.old_logprobs,
        batch.advantages,
        batch.mask,
        p=p,
        clip_eps_low=low,
        clip_eps_high=high,
        log_ratio_max=hparams.loss['log_ratio_max'])
    return value, logprobs

  grads, logprobs = jax.grad(loss, has_aux=True)(params)
  return flatten_util.ravel_pytree(grads)[0], logprobs


def _params(static):
  """Random parameters, wider than fresh ones."""
  shapes = jax.eval_shape(
      functools.partial(transformer.init, policy.make_model(static)),
      jax.random.key(0))
  rng = np.random.default_rng(0)
  draw = lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
  return jax.tree.map(draw, shapes)


def _cosine(first, second):
  first, second = np.float64(first), np.float64(second)
  return first @ second / np.linalg.norm(first) / np.linalg.norm(second)


class CompareMeansTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    config = small.config(
        loss__clip_eps_low=0.1,
        loss__clip_eps_high=0.2,
        rollout__temperature=0.8)
    self.static = partition.static(config)
    self.hparams = partition.hparams(config)
    self.widths = update.start_controls(self.hparams).widths
    self.params = _params(self.static)
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 14, (32, 12), np.int32))
    mask = jnp.arange(6) < 1 + jnp.arange(32)[:, None] % 6
    valid = jnp.concatenate([jnp.ones((32, 6), bool), mask], axis=1)
    self.log_ratio = jnp.asarray(0.7 * rng.normal(size=mask.shape), jnp.float32)
    zeros = jnp.zeros(mask.shape)
    self.batch = base.Batch(
        is_on_policy=jnp.bool_(False),
        tokens=tokens,
        valid=valid,
        mask=mask,
        old_logprobs=zeros,
        ref_logprobs=zeros,
        group=jnp.arange(32) // 8,
        advantages=jnp.asarray(rng.normal(size=32), jnp.float32))
    _, self.logprobs = self._gradient(0, 0.5, 0.5)
    self.batch = self.batch._replace(old_logprobs=self.logprobs -
                                     self.log_ratio)

  def _gradient(self, p, low, high):
    return _gradient(self.static, self.params, self.hparams, self.batch,
                     *map(jnp.float32, (p, low, high)))

  def _compare(self, **changes):
    values = _compare(self.static, self.params, self.hparams, self.widths,
                      self.batch._replace(**changes))
    self.assertEqual(tuple(values), mechanism.KEYS)
    return {name.split('/')[1]: float(x) for name, x in values.items()}

  def test_all_means_are_one_while_no_ratio_has_moved(self):
    values = self._compare(old_logprobs=self.logprobs)
    for name in ('cosine', 'cosine_unclipped', 'norm_ratio'):
      self.assertAlmostEqual(values[name], 1, delta=1e-5)
    self.assertLess(values['sigma'], 1e-5)

  def test_equals_gradients_computed_one_at_a_time(self):
    values = self._compare()
    clip = self.widths
    geometric, harmonic, geometric_free, harmonic_free = (
        self._gradient(p, *bounds)[0]
        for bounds in (clip, (1 - 1e-6, jnp.inf))
        for p in (0, -1))
    expected = {
        'cosine':
            _cosine(geometric, harmonic),
        'cosine_unclipped':
            _cosine(geometric_free, harmonic_free),
        'norm_ratio':
            np.linalg.norm(harmonic_free) / np.linalg.norm(geometric_free),
    }
    for name, value in expected.items():
      self.assertAlmostEqual(values[name], value, delta=1e-5)
    # Four different gradients: none can stand for another.
    self.assertLess(values['cosine'], values['cosine_unclipped'] - 0.05)
    self.assertLess(values['cosine_unclipped'], 0.98)
    self.assertGreater(abs(values['norm_ratio'] - 1), 0.05)

  def test_sigma_is_the_root_of_the_mean_variance_within_rows(self):
    variances = [
        np.var(row[mask]) for row, mask in zip(self.log_ratio, self.batch.mask)
    ]
    self.assertAlmostEqual(
        self._compare()['sigma'], np.mean(variances)**0.5, delta=1e-5)

  def test_gradients_of_zero_give_zero(self):
    values = self._compare(advantages=jnp.zeros_like(self.batch.advantages))
    self.assertEqual(
        [values[name] for name in ('cosine', 'cosine_unclipped', 'norm_ratio')],
        [0, 0, 0])
    self.assertGreater(values['sigma'], 0)

  def test_everything_clipped_leaves_the_unclipped_comparison(self):
    # A < 0 and log-ratios around -4 stop every row at the low side.
    values = self._compare(
        advantages=-jnp.ones_like(self.batch.advantages),
        old_logprobs=self.batch.old_logprobs + 4)
    self.assertEqual(values['cosine'], 0)
    self.assertGreater(values['cosine_unclipped'], 0.1)

  def test_batch_without_a_token_gives_zero(self):
    values = self._compare(mask=jnp.zeros_like(self.batch.mask))
    self.assertEqual(list(values.values()), [0, 0, 0, 0])


if __name__ == '__main__':
  absltest.main()
