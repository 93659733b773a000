"""The largest attention logits: what they cost, and that NaN shows in them."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.model import transformer

_MODEL = transformer.Transformer(
  vocab_size=11,
  num_layers=2,
  embed_dim=16,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  mlp_dim=16,
  rope_theta=1e4,
  norm_eps=1e-6,
  qk_bias=False,
  qk_norm=False,
  tie_embeddings=True,
)


class StatisticTest(absltest.TestCase):
  def test_memory(self):
    params = transformer.init(_MODEL, jax.random.key(0))
    tokens = jnp.ones((4, 256), jnp.int32)
    valid = tokens > 0

    def temporary_bytes(has_statistic):

      def loss(params):
        output = transformer.apply(
          _MODEL, params, tokens, valid, transformer.positions_of(valid)
        )
        statistic = output.max_logits if has_statistic else None
        return jnp.sum(output.hidden**2), statistic

      program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params)
      return program.compile().memory_analysis().temp_size_in_bytes

    extra = temporary_bytes(True) - temporary_bytes(False)
    # One bool for each entry of [B, H, T, T] would be 2**20 bytes.
    self.assertLess(extra, 2**16)

  def test_nan(self):
    # So large that XLA vectorises its reductions, which then drop NaN.
    params = transformer.init(_MODEL, jax.random.key(0))
    tokens = jnp.ones((16, 40), jnp.int32)
    kernel = params['layers']['attention']['query']['kernel']
    # Of the last head of the second layer.
    kernel = kernel.at[1, :, 3].set(jnp.nan)
    params['layers']['attention']['query']['kernel'] = kernel
    output = jax.jit(transformer.apply, static_argnums=0)(
      _MODEL, params, tokens, tokens > 0, transformer.positions_of(tokens > 0)
    )
    np.testing.assert_array_equal(
      jnp.isnan(output.max_logits), [[False] * 4, [False] * 3 + [True]]
    )


if __name__ == '__main__':
  absltest.main()
