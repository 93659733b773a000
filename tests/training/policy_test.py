"""Which logits chose which token, and the entropy of the choice."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.config import traced
from hmpo_jax.model import transformer
from hmpo_jax.training import policy
from tests import small


def _chain(static, table):
  """Parameters whose logits after token i are table[i], [V, V], V = D."""
  init = functools.partial(transformer.init, policy.make_model(static))
  params = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, np.float32),
    jax.eval_shape(init, jax.random.key(0)),
  )
  params['norm']['scale'] += 1
  # The norm makes a row of the identity sqrt(V) long.
  params['embed'], params['head'] = (
    np.eye(len(table)),
    table / len(table) ** 0.5,
  )
  return params


_forward = jax.jit(policy.forward, static_argnums=0)


class ForwardTest(parameterized.TestCase):
  # Of 14 tokens all weigh 1, but for 3 after 2 which weighs 2, 4 after 3 which
  # weighs 3 and 9 after 4 which weighs 4; temperature 2 takes the square root
  # of e^table.
  @parameterized.parameters(1.0, 2.0)
  def test_each_token_was_chosen_by_the_logits_before_it(self, temperature):
    static = traced.static(
      small.config(
        model__embed_dim=14, model__num_layers=1, model__norm_eps=1e-9
      )
    )
    table = np.zeros((14, 14), np.float32)
    table[[2, 3, 4], [3, 4, 9]] = temperature * np.log([2, 3, 4])
    tokens = jnp.array([[5, 2, 3, 4, 9], [0, 2, 3, 5, 0], [3, 4, 9, 1, 0]])
    mask = jnp.array([[1, 1, 1], [1, 1, 0], [1, 1, 0]]) == 1
    valid = jnp.concatenate([tokens[:, :2] != 0, mask], axis=1)
    logprobs, entropies, *_ = _forward(
      static, _chain(static, table), tokens, valid, mask, temperature
    )
    self.assertEqual(logprobs.shape, mask.shape)
    np.testing.assert_allclose(
      np.where(mask, np.exp(logprobs), 0),
      [[2 / 15, 3 / 16, 4 / 17], [2 / 15, 1 / 16, 0], [4 / 17, 1 / 14, 0]],
      rtol=1e-5,
    )
    table64 = np.float64(table[tokens[:, 1:-1]]) / temperature
    weights = np.exp(table64) / np.exp(table64).sum(-1, keepdims=True)
    np.testing.assert_allclose(
      entropies, -(weights * np.log(weights)).sum(-1), rtol=1e-5
    )

  def test_model_and_task_are_those_of_the_configuration(self):
    config = small.config(
      task__name='addition', task__num_digits=3, model__qk_bias=True
    )
    static = traced.static(config)
    task, model = policy.make_task(static), policy.make_model(static)
    self.assertEqual((task.name, task.prompt_len), ('addition', 8))
    self.assertEqual(model.vocab_size, task.vocab_size)
    for name, value in config.model.items():
      self.assertEqual(getattr(model, name), value, name)


class MicrobatchesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.static, self.hparams, state = small.start(small.config())
    self.params = state.params
    self.batch = small.batch(self.static, state, self.hparams)

  def _run(self, count, batch, weights):
    """Gradient of sum_bt weights_bt (logprob + entropy) and the forward."""
    config = small.config(
      train__num_minibatches=1, train__num_microbatches=count
    )

    @jax.jit
    def run(params):

      def loss(params):
        found = policy.forward_in_microbatches(
          traced.static(config),
          params,
          batch.tokens,
          batch.valid,
          batch.mask,
          self.hparams.temperature,
        )
        terms = weights * (found.logprobs + found.entropies)
        return jnp.sum(jnp.where(batch.mask, terms, 0)), found

      return jax.grad(loss, has_aux=True)(params)

    return run(self.params)

  @parameterized.parameters(2, 8, 32)
  def test_equal_the_full_batch(self, count):
    rng = np.random.default_rng(0)
    # Rows of very different length and weight, of which no mean of means of
    # microbatches would be the mean.
    mask = self.batch.mask & (rng.random(self.batch.mask.shape) < 0.7)
    batch = self.batch._replace(mask=mask)
    weights = jnp.float32(rng.normal(size=mask.shape)) / jnp.sum(mask)
    grads, found = self._run(1, batch, weights)
    micro_grads, micro = self._run(count, batch, weights)
    chex.assert_trees_all_close(micro_grads, grads, rtol=2e-5, atol=2e-7)
    chex.assert_trees_all_close(micro, found, rtol=1e-5, atol=1e-6)

  def test_largest_logit_is_the_maximum_over_all(self):
    weights = jnp.zeros(self.batch.mask.shape)
    _, whole = self._run(1, self.batch, weights)
    _, micro = self._run(8, self.batch, weights)
    parts = [
      self._run(
        1,
        jax.tree.map(lambda x, i=i: x[i::8] if x.ndim else x, self.batch),
        weights[i::8],
      )[1].max_logits
      for i in range(2)
    ]
    # A sum or a mean over microbatches, or the last of them, would differ.
    self.assertTrue((np.abs(parts[0] - parts[1]) > 1e-4).any())
    np.testing.assert_allclose(micro.max_logits, whole.max_logits, rtol=1e-5)


class MeanEntropyTest(absltest.TestCase):
  def test_mean_over_the_tokens_of_the_mask(self):
    entropies = jnp.array([[1.0, 2.0], [6.0, jnp.nan]])
    mask = jnp.array([[1, 1], [1, 0]]) == 1
    self.assertEqual(policy.mean_entropy(entropies, mask), 3)

  def test_no_token_is_zero(self):
    self.assertEqual(
      policy.mean_entropy(jnp.ones((2, 3)), jnp.zeros((2, 3), bool)), 0
    )


if __name__ == '__main__':
  absltest.main()
