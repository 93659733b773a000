"""Truncated sampling: by hand, against float64 loops, and at the edges."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.ops import truncation
from tests import reference

_kept = jax.jit(truncation.kept, static_argnums=(1, 2))


def _logits(shape=(40, 23), dtype=jnp.float32, scale=1.5):
  rng = np.random.default_rng(0)
  return jnp.asarray(scale * rng.normal(size=shape), dtype)


def _in_float64(logits, top_k, top_p):
  """keep and mass, token by token from the likeliest."""
  keep = np.zeros(logits.shape, bool)
  masses = np.zeros(logits.shape[:-1])
  for row in np.ndindex(masses.shape):
    values = [float(logit) for logit in logits[row]]
    probs = np.exp(reference.log_softmax(values, 1.0))
    order = sorted(range(len(values)), key=lambda v, x=values: (-x[v], v))
    among = order[:top_k] if top_k else order
    total = sum(probs[v] for v in among)
    for v in among:
      if masses[row] >= top_p * total and keep[row].any():
        break
      keep[(*row, v)] = True
      masses[row] += probs[v]
  return keep, masses


class ValueTest(parameterized.TestCase):
  # Of the mass .9 that top_k = 3 leaves, 4/9 and 3/9 are at least .75, and of
  # all mass they are not.
  @parameterized.parameters(
    (0, 1.0, [1, 1, 1, 1], 1.0),
    (1, 1.0, [0, 1, 0, 0], 0.4),
    (2, 1.0, [0, 1, 1, 0], 0.7),
    (0, 0.39, [0, 1, 0, 0], 0.4),
    (0, 0.41, [0, 1, 1, 0], 0.7),
    (0, 0.75, [0, 1, 1, 1], 0.9),
    (3, 0.75, [0, 1, 1, 0], 0.7),
    (1, 0.75, [0, 1, 0, 0], 0.4),
    (4, 1.0, [1, 1, 1, 1], 1.0),
    (9, 1.0, [1, 1, 1, 1], 1.0),
    (9, 0.95, [1, 1, 1, 1], 1.0),
    (0, 1e-50, [0, 1, 0, 0], 0.4),
  )
  def test_by_hand(self, top_k, top_p, expected, mass):
    logits = jnp.log(jnp.array([0.1, 0.4, 0.3, 0.2])) + 5
    keep, found = truncation.kept(logits, top_k, top_p)
    np.testing.assert_array_equal(keep, np.array(expected, bool))
    np.testing.assert_allclose(found, mass, rtol=1e-6)

  # Four alike: exactly 1/4 each, and 1/2 is at least 1/2.
  @parameterized.parameters(
    (1, 1.0, 1),
    (3, 1.0, 3),
    (0, 0.5, 2),
    (0, 0.51, 3),
    (2, 0.5, 1),
    (0, 2.0**-149, 1),
    (0, 0.25, 1),
  )
  def test_ties_go_to_the_lower_token(self, top_k, top_p, num):
    # Zeros of both signs are one number.
    for logits in (
      jnp.zeros(4),
      jnp.array([-0.0, 0, -0.0, 0]),
      jnp.full(4, 7.0),
    ):
      keep, mass = truncation.kept(logits, top_k, top_p)
      np.testing.assert_array_equal(keep, np.arange(4) < num)
      np.testing.assert_array_equal(mass, num / 4)

  # bfloat16 has 8 bits: many ties.
  @parameterized.parameters(
    (jnp.float32, 5, 1.0),
    (jnp.float32, 0, 0.3),
    (jnp.float32, 0, 0.9),
    (jnp.float32, 0, 0.999),
    (jnp.float32, 6, 0.7),
    (jnp.float32, 30, 0.8),
    (jnp.bfloat16, 5, 1.0),
    (jnp.bfloat16, 6, 0.7),
  )
  def test_float64(self, dtype, *case):
    logits = _logits(dtype=dtype)
    keep, mass = _kept(logits, *case)
    expected, expected_mass = _in_float64(logits, *case)
    np.testing.assert_array_equal(keep, expected)
    self.assertEqual(mass.dtype, jnp.float32)
    np.testing.assert_allclose(mass, expected_mass, rtol=1e-6)

  def test_the_likeliest_is_what_greedy_decoding_takes(self):
    logits = jnp.round(_logits())
    greedy = jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1])
    for case in ((1, 1.0), (0, 1e-6)):
      np.testing.assert_array_equal(_kept(logits, *case)[0], greedy)

  # At the end of a large vocabulary sums are rounded to more than a token has.
  @parameterized.parameters((1e-3, 0.9), (3.0, 0.9999999))
  def test_nucleus_has_no_gap(self, scale, top_p):
    logits = _logits((2, 151_936), scale=scale)
    keep, mass = (np.asarray(x) for x in _kept(logits, 0, top_p))
    for row in range(2):
      order = np.argsort(-np.asarray(logits[row]), kind='stable')
      np.testing.assert_array_equal(
        keep[row][order], np.arange(151_936) < keep[row].sum()
      )
      probs = np.exp(np.float64(logits[row]))
      np.testing.assert_allclose(mass[row], top_p, rtol=1e-5)
      np.testing.assert_allclose(
        np.sum(probs[keep[row]]) / np.sum(probs), top_p, rtol=1e-5
      )

  def test_dtype_of_the_mass(self):
    with reference.x64():
      logits = _logits(dtype=jnp.float64)
      for case in ((0, 1.0), (3, 0.6)):
        keep, mass = truncation.kept(logits, *case)
        self.assertEqual((keep.dtype, mass.dtype), (bool, jnp.float32))
        np.testing.assert_array_equal(keep, _in_float64(logits, *case)[0])


class DegenerateTest(parameterized.TestCase):
  @parameterized.product(
    shape=((1,), (3, 1), (2, 0, 5)), case=((0, 1.0), (7, 1.0), (2, 0.5))
  )
  def test_shapes(self, shape, case):
    keep, mass = _kept(jnp.zeros(shape), *case)
    self.assertEqual((keep.shape, mass.shape), (shape, shape[:-1]))
    if shape[-1] == 1:
      np.testing.assert_array_equal(keep, np.ones(shape, bool))
      np.testing.assert_array_equal(mass, np.ones(shape[:-1]))

  @parameterized.parameters((2, 1.0), (0, 0.9), (3, 0.99))
  def test_tokens_without_mass(self, top_k, top_p):
    logits = jnp.array([-jnp.inf, 0, -jnp.inf, 0, -1e9])
    keep, mass = truncation.kept(logits, top_k, top_p)
    np.testing.assert_array_equal(keep, [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(mass, 1)

  @parameterized.parameters((2, 1.0), (0, 0.9), (2, 0.9))
  def test_nan_shows_in_the_mass_of_its_row(self, top_k, top_p):
    logits = _logits((33, 19)).at[5, 4].set(jnp.nan).at[7].set(-jnp.inf)
    keep, mass = _kept(logits, top_k, top_p)
    bad = np.isin(np.arange(33), (5, 7))
    np.testing.assert_array_equal(np.isnan(mass), bad)
    self.assertTrue(np.all(np.any(keep, axis=-1)))
    np.testing.assert_array_equal(
      np.asarray(keep)[~bad],
      _in_float64(np.asarray(logits)[~bad], top_k, top_p)[0],
    )

  @parameterized.parameters('vmap', 'map', 'scan', 'checkpoint')
  def test_runs(self, over):
    logits = _logits((4, 3, 11))
    one = functools.partial(truncation.kept, top_k=6, top_p=0.7)
    if over == 'vmap':
      found = jax.jit(jax.vmap(one))(logits)
    elif over == 'map':
      found = jax.jit(lambda x: jax.lax.map(one, x))(logits)
    elif over == 'scan':
      _, found = jax.jit(
        lambda x: jax.lax.scan(lambda _, x: (None, one(x)), None, x)
      )(logits)
    else:
      found = jax.jit(jax.checkpoint(one))(logits)
    keep, mass = _in_float64(logits, 6, 0.7)
    np.testing.assert_array_equal(found[0], keep)
    np.testing.assert_allclose(found[1], mass, rtol=1e-6)


class ErrorTest(parameterized.TestCase):
  @parameterized.parameters(
    ('top_k', -1, 1.0),
    ('top_p', 0, 0.0),
    ('top_p', 0, -0.5),
    ('top_p', 3, 1.5),
    ('top_p', 0, float('nan')),
  )
  def test_bad_option(self, name, top_k, top_p):
    with self.assertRaisesRegex(ValueError, f'^{name}=.*: must'):
      truncation.kept(jnp.zeros(4), top_k, top_p)

  def test_dtype(self):
    for case in ((0, 1.0), (2, 1.0), (0, 0.5)):
      with self.assertRaises(AssertionError):
        truncation.kept(jnp.zeros(4, int), *case)


if __name__ == '__main__':
  absltest.main()
