"""Products of narrow floats: exact factors, wide sums, any layout."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import precision
from hmpo_jax.ops import vocabulary
from tests import reference


def _factors(dtype, *shapes):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


class WideTest(parameterized.TestCase):
  @parameterized.product(
    dtype=(jnp.bfloat16, jnp.float16, jnp.float32), x_axis=(0, 1), y_axis=(0, 1)
  )
  def test_dot(self, dtype, x_axis, y_axis):
    shape = lambda axis, other: (24, other) if axis == 0 else (other, 24)
    x, y = _factors(dtype, shape(x_axis, 16), shape(y_axis, 40))
    # The transposed arrays are made in the program, which may fold them in.
    found = jax.jit(
      lambda x, y: precision.dot(
        jnp.sin(x).T, jnp.sin(y).T, 1 - x_axis, 1 - y_axis
      )
    )(x, y)
    expected = np.tensordot(
      np.float64(jnp.sin(x)), np.float64(jnp.sin(y)), (x_axis, y_axis)
    )
    self.assertEqual(found.dtype, jnp.float32)
    # A rounding of the sines may be left out.
    share = {jnp.float32: 1e-6, jnp.float16: 1e-3, jnp.bfloat16: 1e-2}[dtype]
    np.testing.assert_allclose(found, expected, atol=10 * share)

  def test_einsum(self):
    x, y = _factors(jnp.bfloat16, (3, 5, 8), (3, 7, 8))
    found = jax.jit(precision.einsum, static_argnums=0)('nqd,nkd->nkq', x, y)
    expected = np.einsum('nqd,nkd->nkq', np.float64(x), np.float64(y))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

  # 1001 needs 10 bits; a sum in bfloat16 stays at 256.
  def test_sums_are_wide(self):
    ones = jnp.ones((1001, 1), jnp.bfloat16)
    np.testing.assert_array_equal(precision.dot(ones, ones, 0, 0), [[1001]])

  def test_float64_stays_where_jax_has_it(self):
    x = jax.ShapeDtypeStruct((2, 2), np.float64)
    self.assertEqual(precision.dtype_of(x), np.float32)
    with reference.x64():
      self.assertEqual(precision.dtype_of(x), np.float64)

  # One chunk without a loop: the compiler sees the products' neighbours.
  @parameterized.product(vocab_axis=(0, 1), chunk_size=(13, 5))
  def test_log_probabilities_of_narrow_floats_have_gradients(
    self, vocab_axis, chunk_size
  ):
    shape = (13, 32) if vocab_axis == 0 else (32, 13)
    hidden, head = _factors(jnp.bfloat16, (16, 32), shape)
    tokens = jnp.arange(16) % 13

    def total(hidden, head):
      logprobs, entropies = vocabulary.token_logprobs_and_entropy(
        hidden, head, tokens, 1.0, vocab_axis=vocab_axis, chunk_size=chunk_size
      )
      return jnp.sum(logprobs) + jnp.sum(entropies)

    slopes = jax.jit(jax.grad(total, (0, 1)))
    found = slopes(hidden, head)
    expected = slopes(hidden.astype(jnp.float32), head.astype(jnp.float32))
    for narrow, full in zip(found, expected):
      self.assertEqual(narrow.dtype, jnp.bfloat16)
      np.testing.assert_allclose(
        np.float32(narrow), full, atol=0.02 * np.abs(full).max()
      )


if __name__ == '__main__':
  absltest.main()
