"""The entropy of attention weights against float64 loops, up to the metrics."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.ops import attention

_BATCH, _HEADS, _WIDTH = 3, 4, 4
# All logits in one array, and in three blocks of which the last isn't full.
_LENGTHS = {'plain': 21, 'blockwise': 70}
_both = jax.jit(
  functools.partial(attention.causal_attention_and_entropy, block_size=24),
  static_argnames='logits_dtype',
)


def _arguments(form, key_heads, scale=1.0):
  """Query, key, value, and which tokens are no padding."""
  rng = np.random.default_rng(0)
  length = _LENGTHS[form]
  valid = np.ones((_BATCH, length), bool)
  valid[0, :10], valid[1, 15:], valid[2, 5:9] = 3 * (False,)
  return [
    jnp.float32(factor * rng.normal(size=(_BATCH, length, heads, _WIDTH)))
    for factor, heads in ((scale, _HEADS), (1, key_heads), (1, key_heads))
  ] + [valid]


def _reference(query, key, value, valid):
  """[B, S, H] in float64, one query at a time."""
  query, key = np.float64(query), np.float64(key)
  entropies = np.zeros(query.shape[:3])
  for b, t, h in np.ndindex(query.shape[:3]):
    seen = [s for s in range(t + 1) if valid[b, s]]
    if seen:
      k = h // (query.shape[2] // value.shape[2])
      logits = key[b, seen, k] @ query[b, t, h] / np.sqrt(_WIDTH)
      weights = np.exp(logits - logits.max())
      weights /= weights.sum()
      entropies[b, t, h] = -sum(w * np.log(w) for w in weights if w > 0)
  return entropies


class KernelTest(parameterized.TestCase):
  # Large logits are known to 1e-3, and so are the entropies.
  @parameterized.product(
    form=list(_LENGTHS),
    choice=((4, 1.0, 2e-6), (2, 1.0, 2e-6), (1, 1.0, 2e-6), (2, 3e3, 5e-3)),
  )
  def test_value(self, form, choice):
    key_heads, scale, tolerance = choice
    arguments = _arguments(form, key_heads, scale)
    mixed, max_logits, entropies = _both(*arguments)
    np.testing.assert_allclose(
      entropies, _reference(*arguments), rtol=0, atol=tolerance
    )
    self.assertGreaterEqual(np.min(entropies), 0)
    # All else is as without.
    without = jax.jit(
      functools.partial(attention.causal_attention, block_size=24)
    )(*arguments)
    np.testing.assert_array_equal(mixed, without[0])
    np.testing.assert_array_equal(max_logits, without[1])

  @parameterized.parameters(*_LENGTHS)
  def test_equal_logits_by_hand(self, form):
    query, key, value, valid = _arguments(form, 2)
    *_, entropies = _both(0 * query, key, value, valid)
    counts = np.maximum(np.cumsum(valid, axis=1), 1)
    np.testing.assert_allclose(
      entropies,
      np.broadcast_to(np.log(counts)[..., None], entropies.shape),
      rtol=1e-5,
      atol=1e-6,
    )

  @parameterized.parameters(*_LENGTHS)
  def test_nothing_seen_narrow_logits_and_gradient(self, form):
    query, key, value, valid = _arguments(form, 2)
    *_, entropies = _both(query, key, value, 0 * valid > 0)
    np.testing.assert_array_equal(entropies, 0)
    *_, entropies = _both(query, key, value, valid, logits_dtype='bfloat16')
    np.testing.assert_allclose(
      entropies, _reference(query, key, value, valid), rtol=0, atol=0.02
    )
    slopes = jax.grad(
      lambda *x: jnp.sum(_both(*x, valid)[2]), argnums=(0, 1, 2)
    )(query, key, value)
    for slope in slopes:
      np.testing.assert_array_equal(slope, 0)

  def test_empty(self):
    shape = lambda heads: jnp.zeros((0, 5, heads, _WIDTH))
    *_, entropies = attention.causal_attention_and_entropy(
      shape(4), shape(2), shape(2), jnp.zeros((0, 5), bool)
    )
    self.assertEqual(entropies.shape, (0, 5, 4))


if __name__ == '__main__':
  absltest.main()
