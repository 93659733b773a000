"""The suite of attention: what it times; no time is asserted."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import attention
from experiments.bench import timing


class AttentionTest(absltest.TestCase):
  def test_rows_of_both_forms_and_passes(self):
    options = timing.Options([(2, 9, 2, 1, 4)], 2, None)
    rows = attention.measure(options)
    self.assertEqual(
      [(row.shape, row.variant, row.mode) for row in rows],
      [
        (f'2x9x2x1x4, {mode}', variant, mode)
        for mode in ('forward', 'forward and backward')
        for variant in ('plain', 'blockwise')
      ],
    )
    for row in rows:
      self.assertGreater(row.ms, 0)
      self.assertGreater(row.compile_s, 0)
      self.assertGreater(row.gflops_per_s, 0)
    self.assertEqual((rows[0].ratio, rows[2].ratio), (1, 1))

  def test_baseline_is_always_timed(self):
    options = timing.Options([(1, 2, 1, 1, 2)], 2, None, variants='plain')
    rows = attention.measure(options)
    self.assertEqual([row.variant for row in rows], ['plain', 'plain'])
    self.assertEqual(attention.SUITE.variants(), ('plain', 'blockwise'))

  def test_flops_by_hand(self):
    # 6 of 9 logits are visible; a product with 4 entries is 8 operations.
    shape = 2, 3, 5, 5, 4
    self.assertEqual(
      attention.visible_flops(shape, 'forward'), 2 * 5 * 6 * 2 * 8
    )
    self.assertEqual(
      attention.visible_flops(shape, 'forward and backward'), 2 * 5 * 6 * 6 * 8
    )

  def test_programs_do_what_their_mode_says(self):
    arguments = attention._arguments(4, 32, 2, 1, 4)
    query, key, value, valid, of_mixed = arguments
    self.assertEqual(int(jnp.sum(~valid)), 2)  # of the first sequence

    def form(query, key, value, valid):
      return query * (key + 2 * value) * valid[..., None, None], query[0, 0, 0]

    forward, both = (
      attention._program(form, mode)
      for mode in ('forward', 'forward and backward')
    )
    expected = form(query, key, value, valid)
    np.testing.assert_array_equal(forward(*arguments)[0], expected[0])
    mixed, largest, gradients = jax.jit(both)(*arguments)
    np.testing.assert_array_equal(mixed, expected[0])
    np.testing.assert_array_equal(largest, expected[1])
    of_key = jnp.sum(
      query * of_mixed * valid[..., None, None], axis=2, keepdims=True
    )
    for gradient, like in zip(gradients, (query, key, value)):
      self.assertEqual(gradient.shape, like.shape)
    np.testing.assert_allclose(gradients[1], of_key, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradients[2], 2 * of_key, rtol=1e-5, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
