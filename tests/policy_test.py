"""Which logits chose which token, and the entropy of the choice."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax import config as config_lib
from hmpo_jax import policy
from hmpo_jax.model import transformer
from tests import small


def _chain(static, table):
  """Parameters whose logits after token i are table[i], [V, V], V = D."""
  init = functools.partial(transformer.init, policy.make_model(static))
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32),
                        jax.eval_shape(init, jax.random.key(0)))
  params['norm']['scale'] += 1
  # The norm makes a row of the identity sqrt(V) long.
  params['embed'], params['head'] = np.eye(len(table)), table / len(table)**0.5
  return params


class ResponseLogprobsTest(parameterized.TestCase):

  # Of 14 tokens all weigh 1, but for 3 after 2 which weighs 2, 4 after 3 which
  # weighs 3 and 9 after 4 which weighs 4; temperature 2 takes the square root
  # of e^table.
  @parameterized.parameters(1., 2.)
  def test_each_token_was_chosen_by_the_logits_before_it(self, temperature):
    static = config_lib.static(
        small.config(
            model__embed_dim=14, model__num_layers=1, model__norm_eps=1e-9))
    table = np.zeros((14, 14), np.float32)
    table[[2, 3, 4], [3, 4, 9]] = temperature * np.log([2, 3, 4])
    tokens = jnp.array([[5, 2, 3, 4, 9], [0, 2, 3, 5, 0], [3, 4, 9, 1, 0]])
    mask = jnp.array([[1, 1, 1], [1, 1, 0], [1, 1, 0]]) == 1
    valid = jnp.concatenate([tokens[:, :2] != 0, mask], axis=1)
    logprobs, logits, output = jax.jit(
        policy.response_logprobs,
        static_argnums=0)(static, _chain(static, table), tokens, valid, mask,
                          temperature)
    self.assertEqual(logprobs.shape, mask.shape)
    np.testing.assert_allclose(
        np.where(mask, np.exp(logprobs), 0),
        [[2 / 15, 3 / 16, 4 / 17], [2 / 15, 1 / 16, 0], [4 / 17, 1 / 14, 0]],
        rtol=1e-5)
    np.testing.assert_allclose(logits, table[tokens[:, 1:-1]], atol=1e-5)
    np.testing.assert_allclose(output.logits, table[tokens], atol=1e-5)

  def test_model_and_task_are_those_of_the_configuration(self):
    config = small.config(
        task__name='addition', task__num_digits=3, model__qk_bias=True)
    static = config_lib.static(config)
    task, model = policy.make_task(static), policy.make_model(static)
    self.assertEqual((task.name, task.prompt_len), ('addition', 8))
    self.assertEqual(model.vocab_size, task.vocab_size)
    for name, value in config.model.items():
      self.assertEqual(getattr(model, name), value, name)


class MeanEntropyTest(absltest.TestCase):

  # Entropies of log 4 and, for weights 1, 1, 2, of 3/2 log 2.
  def test_mean_over_the_tokens_of_the_mask(self):
    even, halves = jnp.zeros(4), jnp.log(jnp.array([1., 1., 2., 0.]))
    logits = jnp.array([[even, halves], [halves, jnp.full(4, jnp.nan)]])
    mask = jnp.array([[1, 1], [1, 0]]) == 1
    np.testing.assert_allclose(
        policy.mean_entropy(logits, mask, 1.), (2 + 1.5 + 1.5) / 3 * np.log(2),
        rtol=1e-6)
    np.testing.assert_allclose(
        policy.mean_entropy(3 * logits, mask, 3.),
        (2 + 1.5 + 1.5) / 3 * np.log(2),
        rtol=1e-6)

  def test_no_token_is_zero(self):
    self.assertEqual(
        policy.mean_entropy(jnp.ones((2, 3, 4)), jnp.zeros((2, 3), bool), 1.),
        0)

  def test_gradient(self):
    logits = jnp.arange(4.).reshape(1, 1, 4)
    probs = np.exp(np.arange(4.)) / np.exp(np.arange(4.)).sum()
    entropy = -np.sum(probs * np.log(probs))
    np.testing.assert_allclose(
        jax.grad(policy.mean_entropy)(logits, jnp.ones((1, 1), bool), 1.)[0, 0],
        -probs * (np.log(probs) + entropy),
        atol=1e-6)


if __name__ == '__main__':
  absltest.main()
