"""The largest attention logits cost no array of the size of the attention."""

from absl.testing import absltest
import jax
import jax.numpy as jnp

from hmpo_jax.model import transformer


class StatisticTest(absltest.TestCase):

  def test_memory(self):
    model = transformer.Transformer(
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
        tie_embeddings=True)
    params = transformer.init(model, jax.random.key(0))
    tokens = jnp.ones((4, 256), jnp.int32)
    valid = tokens > 0

    def temporary_bytes(has_statistic):

      def loss(params):
        output = transformer.apply(model, params, tokens, valid,
                                   transformer.positions_of(valid))
        statistic = output.max_logits if has_statistic else None
        return jnp.sum(output.logits**2), statistic

      program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params)
      return program.compile().memory_analysis().temp_size_in_bytes

    extra = temporary_bytes(True) - temporary_bytes(False)
    # One bool for each entry of [B, H, T, T] would be 2**20 bytes.
    self.assertLess(extra, 2**16)


if __name__ == '__main__':
  absltest.main()
