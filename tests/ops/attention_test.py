"""Both forms of attention against float64 loops, and what blocks must keep."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.ops import attention
from hmpo_jax.ops import block_attention
from tests import reference

_BATCH, _LENGTH, _HEADS, _WIDTH = 4, 21, 4, 4
_BLOCK_SIZE = 8  # three blocks, of which the last one isn't full
_FORMS = {
  'plain': attention.plain,
  'blockwise': functools.partial(attention.blockwise, block_size=_BLOCK_SIZE),
}
_KEY_HEADS = {'MHA': 4, 'GQA': 2, 'MQA': 1}
# Padding on the left, on the right, everywhere, and with a gap.
_VALID = np.ones((_BATCH, _LENGTH), bool)
_VALID[0, :10], _VALID[1, 15:], _VALID[2], _VALID[3, 5:9] = 4 * (False,)


def _arguments(key_heads, scale=1.0, dtype=jnp.float32, length=_LENGTH, seed=0):
  """Query, key, value, and the gradient of what is mixed."""
  rng = np.random.default_rng(seed)
  return [
    jnp.asarray(
      factor * rng.normal(size=(_BATCH, length, heads, _WIDTH)), dtype
    )
    for factor, heads in (
      (scale, _HEADS),
      (1, key_heads),
      (1, key_heads),
      (1, _HEADS),
    )
  ]


@functools.partial(jax.jit, static_argnums=0)
def _results(form, query, key, value, of_mixed, valid):
  """Mixed values, largest logits, and the gradients of the three."""
  (mixed, max_logits), pullback = jax.vjp(
    lambda *heads: _FORMS[form](*heads, valid), query, key, value
  )
  # The maximum has no gradient, whatever is asked of it.
  return mixed, max_logits, *pullback((of_mixed, jnp.ones_like(max_logits)))


def _reference(query, key, value, valid):
  """Mixed values and largest logits, one query at a time, in float64."""
  query, key, value = (np.float64(x) for x in (query, key, value))
  mixed, largest = np.zeros(query.shape), np.full(query.shape[2], -np.inf)
  for b, t, h in np.ndindex(query.shape[:3]):
    seen = [s for s in range(t + 1) if valid[b, s]]
    if seen:
      k = h // (query.shape[2] // key.shape[2])
      logits = key[b, seen, k] @ query[b, t, h] / np.sqrt(query.shape[3])
      weights = np.exp(logits - logits.max())
      mixed[b, t, h] = weights @ value[b, seen, k] / weights.sum()
      if valid[b, t]:
        largest[h] = max(largest[h], logits.max())
  return mixed, largest


def _slope(query, key, value, of_mixed, valid, direction, step):
  """How <mixed, of_mixed> changes along a direction, by central differences."""
  ends = []
  for sign in (1, -1):
    moved = (
      np.float64(x) + sign * step * d
      for x, d in zip((query, key, value), direction)
    )
    ends.append(np.sum(_reference(*moved, valid)[0] * np.float64(of_mixed)))
  return (ends[0] - ends[1]) / (2 * step)


class AttentionTest(parameterized.TestCase):
  @parameterized.product(form=list(_FORMS), key_heads=list(_KEY_HEADS))
  def test_value_and_maximum(self, form, key_heads):
    *arguments, of_mixed = _arguments(_KEY_HEADS[key_heads])
    mixed, max_logits, *_ = _results(form, *arguments, of_mixed, _VALID)
    expected = _reference(*arguments, _VALID)
    self.assertEqual(max_logits.dtype, jnp.float32)
    np.testing.assert_allclose(mixed, expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(max_logits, expected[1], rtol=1e-6)

  @parameterized.product(form=list(_FORMS), key_heads=list(_KEY_HEADS))
  def test_gradient_is_the_slope(self, form, key_heads):
    arguments = _arguments(_KEY_HEADS[key_heads])
    _, _, *gradients = _results(form, *arguments, _VALID)
    rng = np.random.default_rng(1)
    for moved in range(3):
      direction = [
        rng.normal(size=x.shape) * (i == moved)
        for i, x in enumerate(arguments[:3])
      ]
      slope = _slope(*arguments, _VALID, direction, 1e-5)
      ours = np.sum(np.float64(gradients[moved]) * direction[moved])
      np.testing.assert_allclose(ours, slope, rtol=2e-5)

  @parameterized.parameters(*_KEY_HEADS)
  def test_gradient_is_that_of_the_plain_form(self, key_heads):
    arguments = _arguments(_KEY_HEADS[key_heads], seed=2)
    plain = _results('plain', *arguments, _VALID)
    ours = _results('blockwise', *arguments, _VALID)
    for gradient, expected in zip(ours[2:], plain[2:]):
      np.testing.assert_allclose(gradient, expected, rtol=0, atol=3e-6)

  @parameterized.parameters(*_FORMS)
  def test_what_sees_nothing_and_is_not_seen(self, form):
    arguments = _arguments(2)
    mixed, _, *gradients = _results(form, *arguments, _VALID)
    blind = np.cumsum(_VALID, axis=1) == 0
    np.testing.assert_array_equal(np.asarray(mixed)[blind], 0)
    np.testing.assert_array_equal(np.asarray(gradients[0])[blind], 0)
    for gradient in gradients[1:]:
      np.testing.assert_array_equal(np.asarray(gradient)[~_VALID], 0)
    mixed, max_logits, *gradients = _results(form, *arguments, 0 * _VALID > 0)
    for x in (mixed, *gradients):
      np.testing.assert_array_equal(x, 0)
    np.testing.assert_array_equal(max_logits, -np.inf)

  @parameterized.parameters(*_FORMS)
  def test_maximum_is_of_valid_queries_on_what_they_see(self, form):
    query, key, value, of_mixed = _arguments(4)
    # All logits of one row are negative, so that no zero may take part.
    query, key = -jnp.abs(query), jnp.abs(key)
    # Of a query on padding, a key on padding and a key that comes later.
    query, key = query.at[1, 18].mul(-1e3), key.at[0, 3].mul(-1e3)
    key = key.at[3, 20].mul(-1e3)
    valid = _VALID.copy()
    valid[3, 20] = False
    _, max_logits, *_ = _results(form, query, key, value, of_mixed, valid)
    expected = _reference(query, key, value, valid)[1]
    self.assertLess(expected.max(), 0)
    np.testing.assert_allclose(max_logits, expected, rtol=1e-5)
    later = key.at[0, 20].mul(-1e3)
    mixed = _results(form, query, later, value, of_mixed, valid)[0]
    before = _results(form, query, key, value, of_mixed, valid)[0]
    np.testing.assert_array_equal(mixed[0, :20], before[0, :20])

  @parameterized.parameters(*_FORMS)
  def test_large_logits(self, form):
    arguments = _arguments(2, scale=1e4)
    mixed, max_logits, *gradients = _results(form, *arguments, _VALID)
    expected = _reference(*arguments[:3], _VALID)
    self.assertGreater(expected[1].min(), 1e4)
    np.testing.assert_allclose(max_logits, expected[1], rtol=1e-6)
    # A logit of 1e4 is known to 1e-3.
    np.testing.assert_allclose(mixed, expected[0], rtol=0, atol=1e-2)
    for gradient in gradients:
      self.assertTrue(np.all(np.isfinite(gradient)))

  @parameterized.parameters(*_FORMS)
  def test_half_precision_is_that_of_the_results(self, form):
    arguments = _arguments(2, dtype=jnp.bfloat16)
    mixed, max_logits, *gradients = _results(form, *arguments, _VALID)
    wide = [x.astype(jnp.float32) for x in arguments]
    expected, largest, *of_wide = _results('plain', *wide, _VALID)
    # Logits are not rounded: the maximum is that of float32.
    np.testing.assert_allclose(max_logits, largest, rtol=1e-6)
    for x, y in zip((mixed, *gradients), (expected, *of_wide)):
      self.assertEqual(x.dtype, jnp.bfloat16)
      np.testing.assert_allclose(
        np.float32(x), y, rtol=0, atol=2e-2 * np.max(np.abs(y))
      )

  def test_double_precision(self):
    with reference.x64():
      arguments = _arguments(2, dtype=jnp.float64)
      mixed, max_logits, *gradients = _results('blockwise', *arguments, _VALID)
      plain = _results('plain', *arguments, _VALID)
      self.assertEqual(max_logits.dtype, jnp.float32)
      expected, _ = _reference(*arguments[:3], _VALID)
      np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-14)
      for gradient, of_plain in zip(gradients, plain[2:]):
        self.assertEqual(gradient.dtype, jnp.float64)
        np.testing.assert_allclose(gradient, of_plain, rtol=0, atol=1e-13)

  @parameterized.parameters(*_FORMS)
  def test_single_token_mixes_its_own_value(self, form):
    query, key, value, of_mixed = _arguments(2, length=1)
    valid = np.array([[True], [True], [False], [True]])
    mixed, max_logits, *gradients = _results(
      form, query, key, value, of_mixed, valid
    )
    own = np.repeat(value, 2, axis=2) * valid[..., None, None]
    np.testing.assert_allclose(mixed, own, rtol=1e-6)
    np.testing.assert_allclose(
      max_logits, _reference(query, key, value, valid)[1], rtol=1e-5
    )
    np.testing.assert_allclose(gradients[0], 0, atol=1e-6)
    summed = np.sum(of_mixed.reshape(4, 1, 2, 2, 4), 3) * valid[..., None, None]
    np.testing.assert_allclose(gradients[2], summed, rtol=1e-5)

  @parameterized.named_parameters(
    ('vmap', lambda run, runs: jax.vmap(run)(*runs)),
    ('map', lambda run, runs: jax.lax.map(lambda of: run(*of), runs)),
  )
  def test_within_other_transformations(self, over):
    arguments = _arguments(2)

    @jax.checkpoint
    def loss(query, key, value, of_mixed):
      return jnp.sum(
        _FORMS['blockwise'](query, key, value, _VALID)[0] * of_mixed
      )

    runs = tuple(jnp.stack([x, 2 * x]) for x in arguments)
    gradients = jax.jit(functools.partial(over, jax.grad(loss, (0, 1, 2))))(
      runs
    )
    for i in range(2):
      expected = _results('plain', *(x[i] for x in runs), _VALID)[2:]
      for x, y in zip(gradients, expected):
        np.testing.assert_allclose(x[i], y, rtol=0, atol=2e-5)

  def test_other_platforms_take_all_sequences_at_once(self):
    query, key, value, of_mixed = _arguments(2)
    expected = _results('blockwise', query, key, value, of_mixed, _VALID)

    def results(*arrays):
      mixed, pullback, max_logits = jax.vjp(
        lambda *heads: _FORMS['blockwise'](*heads, arrays[4]),
        *arrays[:3],
        has_aux=True,
      )
      return mixed, max_logits, *pullback(arrays[3])

    with mock.patch.object(
      jax.lax,
      'platform_dependent',
      lambda *arrays, cpu, default: default(*arrays),
    ):
      at_once = jax.jit(results)(query, key, value, of_mixed, _VALID)
    for x, y in zip(at_once, expected):
      np.testing.assert_allclose(x, y, rtol=0, atol=3e-6)

  def test_log_sums_are_of_float32(self):
    for dtype in (jnp.bfloat16, jnp.float32):
      *heads, _ = _arguments(2, dtype=dtype)
      (_, kept) = jax.eval_shape(
        functools.partial(
          block_attention._forward, block_attention.Options(), _BLOCK_SIZE
        ),
        *heads,
        _VALID,
      )
      # What the gradient needs: nothing of the size of the logits.
      self.assertEqual(kept[-1].dtype, jnp.float32)
      self.assertEqual(
        [x.shape for x in kept],
        [x.shape for x in (*heads, _VALID, heads[0])]
        + [(_BATCH, _LENGTH, _HEADS)],
      )

  def test_memory_is_linear_and_program_constant_in_length(self):

    def program(form, length):
      heads = jax.ShapeDtypeStruct((2, length, 2, 8), jnp.float32)
      valid = jax.ShapeDtypeStruct((2, length), bool)
      lowered = _results.lower(form, heads, heads, heads, heads, valid)
      size = len(lowered.as_text())
      return size, lowered.compile().memory_analysis().temp_size_in_bytes

    short, long = (program('blockwise', n) for n in (512, 2048))
    self.assertLess(long[0], 1.02 * short[0])
    self.assertLess(long[1], 4.2 * short[1])
    # One array of all logits is 2**25 bytes.
    self.assertLess(long[1], 2**22)

  def test_length_chooses_the_form(self):
    query, key, value, _ = _arguments(2, length=128)
    for length, is_plain in ((64, True), (65, False)):
      parts = [x[:, :length] for x in (query, key, value)]
      valid = np.ones((_BATCH, length), bool)
      program = str(jax.make_jaxpr(attention.causal_attention)(*parts, valid))
      self.assertEqual('while' not in program, is_plain)
      mixed, _ = jax.jit(attention.causal_attention)(*parts, valid)
      np.testing.assert_allclose(
        mixed, _reference(*parts, valid)[0], rtol=0, atol=1e-6
      )

  @parameterized.parameters(*_FORMS)
  def test_nan_shows_in_the_maximum_of_its_head(self, form):
    # So large that XLA vectorises its reductions, which then drop NaN.
    query, key, value = (
      jnp.ones((16, 40, heads, _WIDTH)) for heads in (_HEADS, 2, 2)
    )
    query = query.at[5, 7:, 3].set(jnp.nan)
    mixed, max_logits = jax.jit(_FORMS[form])(
      query, key, value, jnp.ones((16, 40), bool)
    )
    np.testing.assert_array_equal(jnp.isnan(max_logits), [0, 0, 0, 1])
    np.testing.assert_array_equal(
      jnp.isnan(mixed).any(axis=-1), jnp.isnan(query).any(axis=-1)
    )

  def test_errors(self):
    query, key, value, _ = _arguments(2)
    for name in ('plain', 'blockwise', 'causal_attention'):
      form = getattr(attention, name)
      with self.assertRaisesRegex(ValueError, 'must divide'):
        form(query[:, :, :3], key, value, _VALID)
      for wrong in (
        (query, key, value[..., :2], _VALID),
        (query[..., :2], key, value, _VALID),
        (query, key, value, _VALID[:, :-1]),
        (query, key, value, np.float32(_VALID)),
        (query, key.astype(jnp.bfloat16), value, _VALID),
        (query[0], key[0], value[0], _VALID[0]),
      ):
        with self.assertRaises(AssertionError):
          form(*wrong)
    with self.assertRaisesRegex(ValueError, 'block_size=0: must be positive'):
      attention.causal_attention(query, key, value, _VALID, block_size=0)


if __name__ == '__main__':
  absltest.main()
