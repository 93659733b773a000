"""Narrow attention logits against float64 loops, and where they overflow."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from hmpo_jax.ops import attention
from hmpo_jax.ops import cached_attention
from hmpo_jax.ops import narrow

_FORMS = {
  'plain': attention.plain,
  'blockwise': functools.partial(attention.blockwise, block_size=8),
}
_NARROW = {'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16}
_BATCH, _LENGTH, _HEADS, _WIDTH = 2, 19, 4, 4
_VALID = np.ones((_BATCH, _LENGTH), bool)
_VALID[0, :3], _VALID[1, 12:15] = False, False


def _arguments(key_heads=2):
  """Query, key, value and a gradient; logits have 18 bits, exact in float32."""
  rng = np.random.default_rng(0)
  shape = lambda heads: (_BATCH, _LENGTH, heads, _WIDTH)
  query = rng.integers(-4095, 4096, shape(_HEADS)) / 2048
  key = rng.integers(-7, 8, shape(key_heads)) / 4
  rest = (rng.normal(size=shape(heads)) for heads in (key_heads, _HEADS))
  return [jnp.float32(x) for x in (query, key, *rest)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _results(form, dtype, query, key, value, of_mixed, valid=_VALID):
  """Mixed values, largest logits, and the gradients of the three."""
  run = lambda *heads: _FORMS[form](*heads, valid, logits_dtype=dtype)
  (mixed, max_logits), pullback = jax.vjp(run, query, key, value)
  return mixed, max_logits, *pullback((of_mixed, jnp.zeros_like(max_logits)))


def _reference(dtype, query, key, value, of_mixed):
  """The same in float64, one query at a time, logits rounded by NumPy."""
  query, key, value, of_mixed = (
    np.float64(x) for x in (query, key, value, of_mixed)
  )
  mixed, largest = np.zeros(query.shape), np.full(_HEADS, -np.inf)
  slopes = [np.zeros(x.shape) for x in (query, key, value)]
  for b, t, h in np.ndindex(query.shape[:3]):
    seen = [s for s in range(t + 1) if _VALID[b, s]]
    if not seen:
      continue
    k, root = h // (_HEADS // key.shape[2]), np.sqrt(_WIDTH)
    wide = key[b, seen, k] @ query[b, t, h] / root
    if _VALID[b, t]:
      largest[h] = max(largest[h], wide.max())
    weights = np.exp(wide.astype(_NARROW[dtype]).astype(float))
    weights /= weights.sum()
    mixed[b, t, h] = weights @ value[b, seen, k]
    of_weights = value[b, seen, k] @ of_mixed[b, t, h]
    of_logits = weights * (of_weights - weights @ of_weights) / root
    slopes[0][b, t, h] = of_logits @ key[b, seen, k]
    for i, s in enumerate(seen):
      slopes[1][b, s, k] += of_logits[i] * query[b, t, h]
      slopes[2][b, s, k] += weights[i] * of_mixed[b, t, h]
  return mixed, largest, *slopes


class RoundedTest(parameterized.TestCase):
  @parameterized.parameters(*_NARROW)
  def test_is_what_numpy_rounds_to(self, dtype):
    x = np.float32(np.random.default_rng(0).normal(size=500) * 300)
    special = np.float32([0, 65504, 65519, -65519, np.inf, -np.inf, np.nan])
    x = np.concatenate([x, special, x / 2**18])
    found = jax.jit(narrow.rounded, static_argnums=1)(x, dtype)
    # Numbers below the smallest normal one become 0.
    smallest = float(ml_dtypes.finfo(_NARROW[dtype]).smallest_normal)
    expected = np.where(
      np.abs(x) < smallest, 0, x.astype(_NARROW[dtype]).astype(np.float32)
    )
    np.testing.assert_array_equal(found, expected)
    self.assertEqual(found.dtype, jnp.float32)

  def test_overflow_and_gradient(self):
    x = jnp.float32([65520.0, -7e4, 0.1])
    found, slope = jax.jvp(
      lambda x: narrow.rounded(x, 'float16'), (x,), (jnp.ones(3),)
    )
    np.testing.assert_array_equal(
      found, np.float32([np.inf, -np.inf, np.float16(0.1)])
    )
    np.testing.assert_array_equal(slope, 1)
    self.assertIs(narrow.rounded(x, 'float32'), x)


class AttentionTest(parameterized.TestCase):
  @parameterized.product(form=list(_FORMS), dtype=list(_NARROW))
  def test_value_maximum_and_gradients(self, form, dtype):
    arguments = _arguments()
    found = _results(form, dtype, *arguments)
    expected = _reference(dtype, *arguments)
    for x, y in zip(found, expected, strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5)
    # It is the rounding that is tested.
    wide = _results(form, 'float32', *arguments)
    self.assertGreater(np.abs(wide[0] - found[0]).max(), 5e-4)
    np.testing.assert_array_equal(wide[1], found[1])

  @parameterized.parameters(*_FORMS)
  def test_overflow(self, form):
    query, key, value, of_mixed = _arguments()
    valid = np.ones_like(_VALID)
    key = jnp.abs(key) + 1
    # Logits from 70,000 up in one row and from -70,000 down in another.
    query = query.at[0, 7, 1].set(35_000).at[1, 9, 2].set(-35_000)
    mixed, largest, *slopes = _results(
      form, 'float16', query, key, value, of_mixed, valid
    )
    is_bad = np.zeros((_BATCH, _LENGTH, _HEADS), bool)
    is_bad[0, 7, 1] = True
    np.testing.assert_array_equal(np.isnan(mixed).all(-1), is_bad)
    np.testing.assert_array_equal(np.isnan(slopes[0]).all(-1), is_bad)
    np.testing.assert_array_equal(mixed[1, 9, 2], 0)
    np.testing.assert_array_equal(slopes[0][1, 9, 2], 0)
    # The largest logits are those of float32.
    np.testing.assert_array_equal(
      largest, _results(form, 'float32', query, key, value, of_mixed, valid)[1]
    )
    self.assertBetween(largest[1], 70_000, np.inf)
    # Keys that the row sees have a gradient that tells; those behind it don't.
    bad_keys = np.isnan(slopes[1][0, :, 0]).all(-1)
    np.testing.assert_array_equal(bad_keys, np.arange(_LENGTH) <= 7)

  @parameterized.parameters(1.0, 1e-3)
  def test_cached_is_teacher_forced(self, scale):
    query, key, value, _ = _arguments()
    # Some rows of +inf, some of -inf alone, unless they are scaled down.
    query = query.at[:, :, 0].mul(4e4 * scale).at[:, :, 2:].set(-4e4 * scale)
    key = jnp.abs(key) + 1
    own = lambda x: x[:, 5:].swapaxes(1, 2)
    shared = lambda x: x[:, :5].swapaxes(1, 2)
    found = jax.jit(
      functools.partial(
        cached_attention.cached_attention, logits_dtype='float16'
      )
    )(
      query[:, -1],
      shared(key),
      shared(value),
      _VALID[:, :5],
      own(key),
      own(value),
      _LENGTH - 5,
    )
    valid = _VALID.copy()
    valid[:, 5:] = True
    expected = _results('plain', 'float16', query, key, value, query, valid)[0]
    np.testing.assert_allclose(found, expected[:, -1], rtol=1e-5, atol=1e-6)
    self.assertEqual(np.isnan(found).any(), scale == 1)

  def test_unknown_dtype(self):
    for form in _FORMS.values():
      with self.assertRaisesRegex(ValueError, 'logits_dtype=.*float32, bfl'):
        form(*_arguments()[:3], _VALID, logits_dtype='int8')


if __name__ == '__main__':
  absltest.main()
