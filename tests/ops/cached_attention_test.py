"""One new token's attention: float64 loops, whole sequences, and programs."""

import functools
import re

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.ops import attention
from hmpo_jax.ops import cached_attention
from tests import reference

_PROMPTS, _GROUP, _HEADS, _WIDTH = 3, 2, 4, 8
_PREFIX, _ROOM, _LENGTH = 5, 7, 4
_KEY_HEADS = {'MHA': 4, 'GQA': 2, 'MQA': 1}
_function = cached_attention.cached_attention
_value = jax.jit(_function)
# On its own: into bfloat16 products the CPU compiler may fold the transposes
# of what it is given, a form that its runtime refuses.
_whole = jax.jit(attention.plain)
# Padding on the left, with a gap, and everywhere.
_VALID = np.ones((_PROMPTS, _PREFIX), bool)
_VALID[0, :2], _VALID[1, 3], _VALID[2] = 3 * (False,)


def _arguments(
  key_heads=2,
  dtype=jnp.float32,
  num=_PROMPTS,
  group=_GROUP,
  prefix=_PREFIX,
  room=_ROOM,
  scale=1.0,
):
  """Query, keys and values of the prefix, and those of the sequences."""
  rng = np.random.default_rng(0)
  shared, own = (
    (num, key_heads, prefix, _WIDTH),
    (num * group, key_heads, room, _WIDTH),
  )
  query = num * group, _HEADS, _WIDTH
  return [
    jnp.asarray(factor * rng.normal(size=shape), dtype)
    for factor, shape in (
      (scale, query),
      (1, shared),
      (1, shared),
      (1, own),
      (1, own),
    )
  ]


def _call(function, arrays, valid, length):
  query, shared_keys, shared_values, keys, values = arrays
  return function(
    query, shared_keys, shared_values, valid, keys, values, length
  )


@jax.jit
def _slopes(arrays, valid, length, gradient):
  """The value, and the gradients of query, keys and values."""
  value, pullback = jax.vjp(
    lambda arrays: _call(_function, arrays, valid, length), arrays
  )
  return value, pullback(gradient)[0]


def _in_float64(arrays, valid, length):
  """[B, H, Dh], one head of one sequence at a time."""
  query, shared_keys, shared_values, keys, values = (
    np.float64(x) for x in arrays
  )
  mixed = np.zeros(query.shape)
  group = len(query) // len(valid)
  for b, h in np.ndindex(query.shape[:2]):
    n, k = b // group, h // (query.shape[1] // keys.shape[1])
    seen = [
      (shared_keys[n, k, s], shared_values[n, k, s])
      for s in range(valid.shape[1])
      if valid[n, s]
    ]
    seen += [(keys[b, k, s], values[b, k, s]) for s in range(length)]
    logits = [query[b, h] @ key / np.sqrt(_WIDTH) for key, _ in seen]
    weights = np.exp(logits - np.max(logits))
    for weight, (_, value) in zip(weights / np.sum(weights), seen):
      mixed[b, h] += weight * value
  return mixed


def _plain(query, shared_keys, shared_values, valid, keys, values):
  """Teacher-forced: the queries [B, R, H, Dh] of all own tokens at once."""
  group = len(query) // len(valid)
  whole = [
    jnp.concatenate([jnp.repeat(x, group, 0), y], axis=2).swapaxes(1, 2)
    for x, y in ((shared_keys, keys), (shared_values, values))
  ]
  seen = jnp.pad(
    jnp.repeat(valid, group, 0),
    ((0, 0), (0, keys.shape[2])),
    constant_values=True,
  )
  queries = jnp.pad(query, ((0, 0), (valid.shape[1], 0), (0, 0), (0, 0)))
  return _whole(queries, *whole, seen)[0][:, valid.shape[1] :]


@jax.jit
def _decoded(query, shared_keys, shared_values, valid, keys, values):
  """The same, token by token in a scan."""

  def step(length, of_token):
    return length + 1, _function(
      of_token, shared_keys, shared_values, valid, keys, values, length
    )

  _, mixed = jax.lax.scan(step, jnp.int32(1), query.swapaxes(0, 1))
  return mixed.swapaxes(0, 1)


class ValueTest(parameterized.TestCase):
  @parameterized.product(key_heads=list(_KEY_HEADS), length=(1, 4, _ROOM))
  def test_value(self, key_heads, length):
    arrays = _arguments(_KEY_HEADS[key_heads])
    found = _call(_value, arrays, _VALID, length)
    np.testing.assert_allclose(
      found, _in_float64(arrays, _VALID, length), rtol=0, atol=1e-6
    )

  @parameterized.parameters(
    {'group': 1},
    {'num': 1},
    {'room': 1},
    {'prefix': 1},
    {'prefix': 0},
    {'group': 0},
  )
  def test_degenerate_sizes(self, **sizes):
    arrays = _arguments(**sizes)
    valid = np.ones(arrays[1].shape[::2], bool)
    found = _call(_value, arrays, valid, 1)
    self.assertEqual(found.shape, arrays[0].shape)
    np.testing.assert_allclose(
      found, _in_float64(arrays, valid, 1), rtol=0, atol=1e-6
    )

  # The first own token and a prefix of padding: its own value.
  def test_single_token(self):
    arrays = _arguments()
    found = _call(_value, arrays, np.zeros_like(_VALID), 1)
    own = np.repeat(arrays[4][:, :, 0], 2, axis=1)
    np.testing.assert_allclose(found, own, rtol=1e-6)

  def test_what_is_not_seen_may_be_any_finite_number(self):
    arrays = _arguments()
    expected, _ = _slopes(arrays, _VALID, _LENGTH, arrays[0])
    padding = ~_VALID[:, None, :, None]
    later = np.arange(_ROOM)[:, None] >= _LENGTH
    hidden = [False, padding, padding, later, later]
    changed = [jnp.where(h, 1e30, x) for h, x in zip(hidden, arrays)]
    found, slopes = _slopes(changed, _VALID, _LENGTH, arrays[0])
    np.testing.assert_array_equal(found, expected)
    for h, slope in zip(hidden[1:], slopes[1:]):
      np.testing.assert_array_equal(np.where(h, slope, 0), 0)
      self.assertTrue(np.all(np.isfinite(slope)))

  def test_nan_stays_in_its_head_and_group(self):
    arrays = _arguments()
    for place, bad in (
      (0, np.s_[3, 1]),
      (1, np.s_[1, 0, 2]),
      (2, np.s_[1, 0, 2]),
      (3, np.s_[3, 0, 1]),
    ):
      changed = [
        x.at[bad].set(jnp.nan) if i == place else x
        for i, x in enumerate(arrays)
      ]
      expected = np.zeros((_PROMPTS * _GROUP, _HEADS), bool)
      # The group 1 is of the sequences 2 and 3; key head 0 of heads 0 and 1.
      expected[{0: np.s_[3, 1], 3: np.s_[3, :2]}.get(place, np.s_[2:4, :2])] = 1
      found = _call(_value, changed, _VALID, _LENGTH)
      np.testing.assert_array_equal(np.isnan(found).any(axis=-1), expected)

  def test_large_logits(self):
    arrays = _arguments(scale=1e4)
    found, slopes = _slopes(arrays, _VALID, _LENGTH, arrays[0])
    # A logit of 1e4 is known to 1e-3.
    np.testing.assert_allclose(
      found, _in_float64(arrays, _VALID, _LENGTH), rtol=0, atol=1e-2
    )
    chex.assert_tree_all_finite(slopes)

  @parameterized.parameters((jnp.bfloat16, 2e-2), (jnp.float16, 2e-3))
  def test_half_precision(self, dtype, share):
    arrays = _arguments(dtype=dtype)
    found, slopes = _slopes(arrays, _VALID, _LENGTH, arrays[0])
    wide = [x.astype(jnp.float32) for x in arrays]
    expected, of_wide = _slopes(wide, _VALID, _LENGTH, wide[0])
    np.testing.assert_allclose(
      expected, _in_float64(arrays, _VALID, _LENGTH), rtol=0, atol=1e-6
    )
    for x, y in zip((found, *slopes), (expected, *of_wide)):
      self.assertEqual(x.dtype, dtype)
      np.testing.assert_allclose(
        np.float32(x), y, rtol=0, atol=share * np.max(np.abs(y))
      )

  # Logits 512 and 514 are one number in bfloat16; their odds are e^2.
  @parameterized.parameters(0, 1)
  def test_logits_are_not_rounded(self, prefix):
    key = jnp.array([[512.0, 0, 0, 0], [512, 2, 0, 0]], jnp.bfloat16)[
      None, None
    ]
    value = jnp.zeros_like(key).at[..., 1, :].set(1)
    query = jnp.full((1, 1, 4), 2, jnp.bfloat16)
    split = lambda x: (x[:, :, :prefix], x[:, :, prefix:])
    (shared_keys, keys), (shared_values, values) = split(key), split(value)
    found = _value(
      query,
      shared_keys,
      shared_values,
      np.ones((1, prefix), bool),
      keys,
      values,
      2 - prefix,
    )
    np.testing.assert_allclose(
      np.float32(found), 1 / (1 + np.exp(-2)), rtol=2**-8
    )

  def test_float64_is_computed_in_float64(self):
    with reference.x64():
      arrays = _arguments(dtype=jnp.float64)
      found = _call(_value, arrays, _VALID, _LENGTH)
      np.testing.assert_allclose(
        found, _in_float64(arrays, _VALID, _LENGTH), rtol=0, atol=1e-14
      )


class EqualityTest(parameterized.TestCase):
  # In bfloat16 both round the weights, and the result.
  @parameterized.parameters(
    (4, jnp.float32, 1e-6),
    (2, jnp.float32, 1e-6),
    (1, jnp.float32, 1e-6),
    (2, jnp.bfloat16, 2e-2),
  )
  def test_teacher_forced(self, key_heads, dtype, tolerance):
    _, *rest = _arguments(key_heads, dtype)
    shape = rest[2].shape[0], _ROOM, _HEADS, _WIDTH
    query = jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype)
    arguments = query, *rest[:2], jnp.asarray(_VALID), *rest[2:]
    found, expected = _decoded(*arguments), _plain(*arguments)
    self.assertEqual(found.dtype, expected.dtype)
    np.testing.assert_allclose(
      np.float32(found), np.float32(expected), rtol=0, atol=tolerance
    )

  def test_gradient_is_that_of_the_plain_form(self):
    arrays = _arguments()
    gradient = jnp.cos(arrays[0])
    _, found = _slopes(arrays, _VALID, _LENGTH, gradient)

    def total(arrays):
      query, *rest, keys, values = arrays
      rest += [
        jnp.asarray(_VALID),
        keys[:, :, :_LENGTH],
        values[:, :, :_LENGTH],
      ]
      queries = jnp.repeat(query[:, None], _LENGTH, axis=1)
      return jnp.sum(_plain(queries, *rest)[:, -1] * gradient)

    for x, y in zip(found, jax.jit(jax.grad(total))(arrays)):
      np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)

  def test_gradient_is_the_slope(self):
    arrays = _arguments()
    rng = np.random.default_rng(1)
    _, found = _slopes(arrays, _VALID, _LENGTH, arrays[0])
    for moved, gradient in enumerate(found):
      direction, ends = rng.normal(size=gradient.shape), []
      for step in (1e-5, -1e-5):
        ends.append(
          np.sum(
            np.float64(arrays[0])
            * _in_float64(
              [
                np.float64(x) + (step * direction if i == moved else 0)
                for i, x in enumerate(arrays)
              ],
              _VALID,
              _LENGTH,
            )
          )
        )
      np.testing.assert_allclose(
        np.sum(np.float64(gradient) * direction),
        (ends[0] - ends[1]) / 2e-5,
        rtol=2e-5,
      )

  def test_room_makes_no_difference(self):
    arrays = _arguments()
    expected = _call(_value, arrays, _VALID, _LENGTH)
    wider = [
      np.pad(x[:, :, :_LENGTH], ((0, 0), (0, 0), (0, 29), (0, 0)))
      for x in arrays[3:]
    ]
    found = _call(_value, arrays[:3] + wider, _VALID, _LENGTH)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-7)

  @parameterized.parameters(
    ('vmap', jnp.float32),
    ('vmap', jnp.bfloat16),
    ('map', jnp.float32),
    ('checkpoint', jnp.float32),
    ('no_jit', jnp.float32),
  )
  def test_within_other_transformations(self, over, dtype):
    runs = [[(i + 1) * x for x in _arguments(dtype=dtype)] for i in range(2)]
    one = lambda arrays, length: _call(_function, arrays, _VALID, length)
    inputs = jax.tree.map(lambda *x: jnp.stack(x), *runs), jnp.array([2, 5])
    if over == 'vmap':
      found = jax.jit(jax.vmap(one))(*inputs)
    elif over == 'map':
      found = jax.jit(lambda *x: jax.lax.map(lambda x: one(*x), x))(*inputs)
    elif over == 'checkpoint':
      found = jax.jit(jax.vmap(jax.checkpoint(one)))(*inputs)
    else:
      with jax.disable_jit():
        found = [one(runs[0], 2)]
    for x, run, length in zip(found, runs, (2, 5)):
      expected = _in_float64(run, _VALID, length)
      np.testing.assert_allclose(
        np.float32(x),
        expected,
        rtol=0,
        atol=1e-5 if dtype == jnp.float32 else 2e-2 * np.max(expected),
      )

  def test_one_program_for_every_length(self):
    traces = []

    @jax.jit
    def value(*arguments):
      traces.append(None)
      return _function(*arguments)

    for length in (1, 2, _ROOM):
      _call(value, _arguments(), _VALID, length)
    self.assertLen(traces, 1)


class ProgramTest(absltest.TestCase):
  def test_keys_and_values_are_not_copied(self):
    if jax.default_backend() != 'cpu':
      self.skipTest('on what the CPU compiler does')
    group, prefix, room, width = 6, 40, 24, 64
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    shared = shape(2, 2, prefix, width)
    own = shape(2 * group, 2, room, width)
    compiled = _value.lower(
      shape(2 * group, 4, width),
      shared,
      shared,
      jax.ShapeDtypeStruct((2, prefix), bool),
      own,
      own,
      jax.ShapeDtypeStruct((), jnp.int32),
    ).compile()
    logits = 2 * group * 4 * (prefix + room)
    made = re.findall(
      r'= f32\[([\d,]+)\]\S* (?!parameter|bitcast)', compiled.as_text()
    )
    sizes = [np.prod([int(n) for n in shape.split(',')]) for shape in made]
    self.assertEqual(max(sizes), logits)
    # Fewer than the keys of the prefixes, or of the sequences.
    self.assertLess(logits, 2 * 2 * prefix * width)
    self.assertLess(
      compiled.memory_analysis().temp_size_in_bytes,
      4 * 2 * group * 2 * room * width,
    )


class ErrorTest(absltest.TestCase):
  def test_shapes_and_dtypes(self):
    arrays = [np.asarray(x) for x in _arguments()]
    query, shared_keys, shared_values, keys, values = arrays
    check = functools.partial(jax.eval_shape, _function)
    right = (query, shared_keys, shared_values, _VALID, keys, values, 1)
    self.assertEqual(check(*right).shape, query.shape)
    for place, wrong in (
      (0, query[:, :3]),
      (0, query[:5]),
      (0, query[..., :4]),
      (0, query[0]),
      (1, shared_keys[..., :4]),
      (1, shared_keys[:, :1]),
      (2, shared_values[:, :, :4]),
      (3, _VALID[:, :4]),
      (3, _VALID[:2]),
      (3, np.float32(_VALID)),
      (4, keys[:5]),
      (4, keys[:, :1]),
      (5, values[:, :, :4]),
      (5, values.astype(jnp.bfloat16)),
      (6, 1.0),
      (6, np.ones(_ROOM, int)),
      (6, np.ones(6, int)),
    ):
      with self.assertRaises(AssertionError):
        check(*right[:place], wrong, *right[place + 1 :])
    with self.assertRaises(AssertionError):
      _call(check, [x.astype(int) for x in arrays], _VALID, 1)
    # Five sequences are no groups of three prompts.
    with self.assertRaises(AssertionError):
      check(query[:5], *right[1:4], keys[:5], values[:5], 1)


if __name__ == '__main__':
  absltest.main()
