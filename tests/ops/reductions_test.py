"""Reductions that keep NaN, and a digest of integers."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.ops import reductions

_nan_max = jax.jit(reductions.nan_max, static_argnums=1)


class NanMaxTest(parameterized.TestCase):
  @parameterized.parameters(None, 0, -1, ((0, 2),))
  def test_equals_numpy(self, axis):
    x = np.random.default_rng(0).normal(size=(9, 6, 70)).astype(np.float32)
    np.testing.assert_array_equal(_nan_max(x, axis), np.max(x, axis))
    x[2, 3, 4] = np.nan
    x[5, 3, 1] = np.inf
    np.testing.assert_array_equal(_nan_max(x, axis), np.max(x, axis))

  def test_all_minus_infinity(self):
    self.assertTrue(jnp.isneginf(_nan_max(np.full(40, -np.inf), None)))

  @parameterized.parameters(3, 64, 1000)
  def test_nan_alone(self, size):
    self.assertTrue(jnp.isnan(_nan_max(np.full((size, size), np.nan), None)))


def _reference(*arrays):
  """The digest in Python's integers, which don't wrap around."""

  def scrambled(x):
    x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
    x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
    return x ^ x >> 16

  total = 0
  for i, x in enumerate(np.concatenate([a.reshape(-1) for a in arrays])):
    total += (2 * scrambled(i) + 1) * int(x)
  return scrambled(total % 2**32) // 2**8


class DigestTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.tokens = rng.integers(0, 14, (32, 20), np.int32)
    self.mask = rng.random((32, 10)) < 0.5

  def test_equals_integers_without_a_bound(self):
    for shape in ((1, 1), (3, 4), (32, 20)):
      tokens = np.random.default_rng(1).integers(0, 2**20, shape, np.int32)
      value = reductions.digest(jnp.asarray(tokens), jnp.asarray(self.mask))
      self.assertEqual(int(value), _reference(tokens, self.mask))
      self.assertEqual(value.dtype, jnp.int32)

  def test_known_values(self):
    self.assertEqual(int(reductions.digest(jnp.zeros((4, 4), bool))), 0)
    self.assertEqual(int(reductions.digest(jnp.zeros((0, 4), jnp.int32))), 0)
    # Of one release and device as of all others.
    self.assertEqual(
      int(reductions.digest(jnp.arange(1000), jnp.ones(7, bool))), 1220161
    )

  def test_float32_holds_it(self):
    many = jax.vmap(reductions.digest)(
      jax.random.randint(jax.random.key(0), (2000, 50), 0, 14)
    )
    np.testing.assert_array_equal(many.astype(jnp.float32), many)
    self.assertBetween(int(many.max()), 2**23, 2**24 - 1)
    # Of 2,000 from 2^24 two are expected to be equal with a chance of 11%.
    self.assertGreaterEqual(len(np.unique(many)), 1999)

  def test_one_other_token_or_a_swap_is_another_digest(self):
    first = int(reductions.digest(self.tokens, self.mask))
    changed = []
    for i in range(self.tokens.size):
      tokens = self.tokens.reshape(-1).copy()
      tokens[i] += 1
      changed.append(tokens)
    for i in range(1, self.tokens.size):
      tokens = self.tokens.reshape(-1).copy()
      if tokens[i] != tokens[0]:
        tokens[[0, i]] = tokens[[i, 0]]
        changed.append(tokens)
    digests = jax.vmap(reductions.digest, (0, None))(
      np.stack(changed), self.mask
    )
    self.assertNotIn(first, np.asarray(digests))
    flipped = self.mask.copy()
    flipped[-1, -1] ^= True
    self.assertNotEqual(int(reductions.digest(self.tokens, flipped)), first)

  def test_is_the_same_under_map_and_vmap(self):
    stacked = jax.random.randint(jax.random.key(0), (5, 32, 20), 0, 14)
    one_by_one = [int(reductions.digest(x)) for x in stacked]
    mapped = jax.jit(lambda x: jax.lax.map(reductions.digest, x))(stacked)
    at_once = jax.jit(jax.vmap(reductions.digest))(stacked)
    self.assertEqual(mapped.tolist(), one_by_one)
    self.assertEqual(at_once.tolist(), one_by_one)


if __name__ == '__main__':
  absltest.main()
