"""Chunks of the vocabulary: by hand, in float64, and against all logits."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.ops import logprobs
from hmpo_jax.ops import vocabulary
from tests import reference

_STATIC = ('vocab_axis', 'chunk_size', 'softcap')
_function = vocabulary.token_logprobs_and_entropy
_values = jax.jit(_function, static_argnames=_STATIC)
_SHAPE, _WIDTH, _VOCAB = (2, 3), 4, 7


def _objective(hidden, head, tokens, temperature, weights, **options):
  """Any sum of both outputs, and the outputs."""
  values = _function(hidden, head, tokens, temperature, **options)
  return sum(jnp.sum(w * x) for w, x in zip(weights, values)), values


_slopes = jax.jit(
  jax.grad(_objective, (0, 1), has_aux=True), static_argnames=_STATIC
)


def _naive(hidden, head, tokens, temperature, weights, softcap=None):
  """The same from all logits; head is [D, V]."""
  logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
  if softcap is not None:
    logits = softcap * jnp.tanh(logits / softcap)
  values = (
    logprobs.token_logprobs(logits, tokens, temperature),
    logprobs.entropy(logits, temperature),
  )
  return sum(jnp.sum(w * x) for w, x in zip(weights, values)), values


_naive_slopes = jax.jit(
  jax.grad(_naive, (0, 1), has_aux=True), static_argnames=('softcap',)
)


def _in_float64(hidden, head, tokens, temperature, softcap):
  """Log-probabilities and entropies, row by row, in NumPy."""
  values = np.zeros((2, *tokens.shape))
  for row in np.ndindex(tokens.shape):
    logits = np.float64(hidden[row]) @ np.float64(head)
    if softcap is not None:
      logits = softcap * np.tanh(logits / softcap)
    log_pi = logits / temperature
    log_pi -= np.log(np.sum(np.exp(log_pi - log_pi.max()))) + log_pi.max()
    values[:, *row] = log_pi[tokens[row]], -np.sum(np.exp(log_pi) * log_pi)
  return values


def _differences(function, x, step=1e-6):
  """Central differences of a number, in each element of x."""
  slope = np.zeros(x.shape)
  for place in np.ndindex(x.shape):
    change = np.zeros(x.shape)
    change[place] = step
    slope[place] = (function(x + change) - function(x - change)) / (2 * step)
  return slope


def _arguments(dtype=jnp.float32, shape=_SHAPE, width=_WIDTH, vocab=_VOCAB):
  """Hidden states, head [D, V], tokens, and weights of both outputs."""
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(*shape, width)), dtype)
  head = jnp.asarray(rng.normal(size=(width, vocab)), dtype)
  tokens = jnp.asarray(rng.integers(0, vocab, size=shape), jnp.int32)
  return hidden, head, tokens, rng.normal(size=(2, *shape))


def _sizes(jaxpr):
  """Elements of all that a program makes, loops and calls included."""
  for equation in jaxpr.eqns:
    yield from (variable.aval.size for variable in equation.outvars)
    for inner in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda node: hasattr(node, 'eqns') or hasattr(node, 'jaxpr'),
    ):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        yield from _sizes(inner)


class ValueTest(parameterized.TestCase):
  # Odds 1 to 3; at temperature 1/2 odds 1 to 9.
  @parameterized.product(
    case=((1.0, 0, 1 / 4), (1.0, 1, 3 / 4), (0.5, 0, 1 / 10), (0.5, 1, 9 / 10)),
    chunk_size=(1, 2),
  )
  def test_by_hand(self, case, chunk_size):
    temperature, token, probability = case
    logprob, entropy = _values(
      jnp.ones((1,)),
      jnp.log(jnp.array([[1.0, 3.0]])),
      jnp.array(token),
      temperature,
      chunk_size=chunk_size,
    )
    np.testing.assert_allclose(jnp.exp(logprob), probability, rtol=1e-6)
    terms = [x * np.log(x) for x in (probability, 1 - probability)]
    np.testing.assert_allclose(entropy, -sum(terms), rtol=1e-6)

  # c tanh(z / c) of z = c artanh(log(3) / c) is log 3.
  def test_softcap_by_hand(self):
    head = jnp.array([[0.0, 2 * np.arctanh(np.log(3) / 2)]])
    logprob, _ = _values(jnp.ones((1,)), head, jnp.array(1), 1.0, softcap=2.0)
    np.testing.assert_allclose(jnp.exp(logprob), 3 / 4, rtol=1e-6)

  def test_equal_logits(self):
    _, head, tokens, _ = _arguments()
    logprob, entropy = _values(
      jnp.zeros((*_SHAPE, _WIDTH)), head, tokens, 0.7, chunk_size=3
    )
    np.testing.assert_allclose(logprob, -np.log(_VOCAB) * np.ones(_SHAPE))
    np.testing.assert_allclose(
      entropy, np.log(_VOCAB) * np.ones(_SHAPE), rtol=1e-6
    )

  # Logits up to 3e4 in every order: the maximum grows in each chunk, or in
  # the first alone, or anywhere.
  @parameterized.parameters(
    ([0.0, 1e4, 2e4, 3e4],),
    ([3e4, 2e4, 1e4, 0.0],),
    ([1e4, 3e4, 0.0, 2e4],),
    ([-3e4, -2e4, -1e4, -4e4],),
  )
  def test_far_apart(self, logits):
    head = jnp.array([logits])
    for chunk_size in (1, 3):
      logprob, entropy = _values(
        jnp.ones((4, 1)), head, jnp.arange(4), 1.0, chunk_size=chunk_size
      )
      np.testing.assert_array_equal(logprob, head[0] - jnp.max(head))
      np.testing.assert_array_equal(entropy, np.zeros(4))
      of_hidden, of_head = _slopes(
        jnp.ones((4, 1)),
        head,
        jnp.arange(4),
        1.0,
        np.ones((2, 4)),
        chunk_size=chunk_size,
      )[0]
      # [v = y] - [v = argmax].
      best = int(np.argmax(logits))
      np.testing.assert_array_equal(of_head[0], 1 - 4 * np.eye(4)[best])
      np.testing.assert_array_equal(of_hidden[:, 0], head[0] - head[0, best])

  # Two at the top of 1e4: log 2 is not lost in it.
  @parameterized.parameters(1, 2, 4)
  def test_entropy_of_large_logits(self, chunk_size):
    head = jnp.array([[-5.0, 1e4, 1e4, 2.0]])
    logprob, entropy = _values(
      jnp.ones((1,)), head, jnp.array(2), 1.0, chunk_size=chunk_size
    )
    np.testing.assert_allclose([logprob, -entropy], -np.log(2), rtol=1e-6)

  def test_one_token(self):
    head = jnp.full((_WIDTH, 1), 3.0)
    hidden, _, tokens, weights = _arguments()
    slopes, values = _slopes(hidden, head, 0 * tokens, 0.7, weights)
    for zero in (*values, *slopes):
      np.testing.assert_array_equal(zero, 0)

  @parameterized.parameters(((0,),), ((2, 0),))
  def test_no_rows(self, *shapes):
    hidden, head, tokens, weights = _arguments(shape=shapes[0])
    slopes, values = _slopes(hidden, head, tokens, 1.0, weights, chunk_size=3)
    for value in values:
      self.assertEqual(value.shape, shapes[0])
    self.assertEqual(slopes[0].shape, hidden.shape)
    np.testing.assert_array_equal(slopes[1], np.zeros(head.shape))

  def test_token_outside_the_vocabulary(self):
    hidden, head, _, weights = _arguments(shape=(4,))
    tokens = jnp.array([0, 7, -1, 6])
    slopes, (logprob, entropy) = _slopes(
      hidden, head, tokens, 1.0, weights, chunk_size=3
    )
    np.testing.assert_array_equal(jnp.isnan(logprob), [0, 1, 1, 0])
    chex.assert_tree_all_finite((entropy, slopes))


class EqualityTest(parameterized.TestCase):
  # V = 7 in chunks that divide it or not, and that are larger.
  @parameterized.parameters(
    (1, 1, None, 0.7),
    (1, 3, 2.0, 1.3),
    (0, 3, None, 1.0),
    (0, 7, 2.0, 0.7),
    (1, 50, None, 1.3),
    (0, None, 2.0, 1.0),
  )
  def test_float64(self, vocab_axis, chunk_size, softcap, temperature):
    arguments = _arguments()
    hidden, head, tokens, weights = arguments
    slopes, values = _slopes(
      hidden,
      head if vocab_axis else head.T,
      tokens,
      temperature,
      weights,
      vocab_axis=vocab_axis,
      chunk_size=chunk_size,
      softcap=softcap,
    )
    expected = lambda hidden, head: _in_float64(
      hidden, head, tokens, temperature, softcap
    )
    np.testing.assert_allclose(
      values, expected(hidden, head), rtol=1e-5, atol=1e-6
    )
    total = lambda hidden, head: np.sum(weights * expected(hidden, head))
    hidden, head = np.float64(hidden), np.float64(head)
    np.testing.assert_allclose(
      slopes[0],
      _differences(lambda x: total(x, head), hidden),
      rtol=1e-5,
      atol=3e-6,
    )
    of_head = _differences(lambda x: total(hidden, x), head)
    np.testing.assert_allclose(
      slopes[1], of_head if vocab_axis else of_head.T, rtol=1e-5, atol=3e-6
    )

  # Shares of the largest derivative. In bfloat16, of 8 bits, g is rounded here
  # and elsewhere there, and so are all derivatives.
  @parameterized.parameters(
    (jnp.float32, 1e-6, 2e-6), (jnp.bfloat16, 1e-6, 1e-2)
  )
  def test_all_logits(self, dtype, of_values, of_slopes):
    hidden, head, tokens, weights = _arguments(dtype, (64,), 32, 200)
    for softcap in (None, 5.0):
      slopes, values = _slopes(
        hidden, head, tokens, 0.7, weights, chunk_size=48, softcap=softcap
      )
      expected, expected_values = _naive_slopes(
        hidden, head, tokens, 0.7, weights, softcap=softcap
      )
      np.testing.assert_allclose(
        values, expected_values, rtol=1e-6, atol=20 * of_values
      )
      for slope, wanted in zip(slopes, expected):
        self.assertEqual(slope.dtype, dtype)
        slope, wanted = np.float32(slope), np.float32(wanted)
        np.testing.assert_allclose(
          slope, wanted, rtol=0, atol=of_slopes * np.max(np.abs(wanted))
        )

  def test_bfloat16_is_summed_in_float32(self):
    hidden, head, tokens, weights = _arguments(jnp.bfloat16, (5,), 512, 40)
    wide = [jnp.float32(x) for x in (hidden, head)]
    narrow = _values(hidden, head, tokens, 1.0, chunk_size=16)
    for value, wanted in zip(narrow, _in_float64(*wide, tokens, 1.0, None)):
      self.assertEqual(value.dtype, jnp.float32)
      np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=2e-5)
    slopes, _ = _slopes(hidden, head, tokens, 1.0, weights, chunk_size=16)
    expected, _ = _slopes(*wide, tokens, 1.0, weights, chunk_size=16)
    for slope, wanted in zip(slopes, expected):
      np.testing.assert_allclose(
        np.float32(slope), wanted, rtol=0, atol=1e-2 * jnp.max(abs(wanted))
      )

  def test_dtypes_may_differ(self):
    hidden, head, tokens, weights = _arguments()
    for dtypes in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float16)):
      arrays = hidden.astype(dtypes[0]), head.astype(dtypes[1])
      slopes, values = _slopes(*arrays, tokens, 1.0, weights, chunk_size=3)
      expected = _in_float64(*arrays, tokens, 1.0, None)
      np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
      self.assertEqual(tuple(x.dtype for x in slopes), dtypes)
      self.assertEqual({x.dtype for x in values}, {jnp.dtype('float32')})

  def test_float64_is_computed_in_float64(self):
    with reference.x64():
      hidden, head, tokens, _ = _arguments(jnp.float64)
      values = _function(hidden, head, tokens, 0.7, chunk_size=3)
      np.testing.assert_allclose(
        values, _in_float64(hidden, head, tokens, 0.7, None), rtol=1e-12
      )


class TransformationTest(parameterized.TestCase):
  @parameterized.parameters('vmap', 'map')
  def test_runs(self, kind):
    hidden, _, tokens, weights = _arguments(shape=(3, 5))
    heads = jnp.asarray(
      np.random.default_rng(1).normal(size=(3, _WIDTH, _VOCAB)), jnp.float32
    )
    temperatures = jnp.array([0.5, 1.0, 2.0])
    weights = jnp.asarray(np.moveaxis(weights, 0, 1), jnp.float32)
    arrays = hidden, heads, tokens, temperatures, weights
    one = jax.grad(
      functools.partial(_objective, chunk_size=3), (0, 1), has_aux=True
    )
    if kind == 'vmap':
      found = jax.jit(jax.vmap(one))(*arrays)
    else:
      found = jax.jit(lambda x: jax.lax.map(lambda x: one(*x), x))(arrays)
    for i in range(3):
      expected = _slopes(*(x[i] for x in arrays), chunk_size=3)
      chex.assert_trees_all_close(
        jax.tree.map(lambda x, i=i: x[i], found), expected, rtol=1e-5, atol=1e-6
      )

  def test_checkpoint(self):
    hidden, head, tokens, weights = _arguments()

    def objective(hidden, head):
      values = jax.checkpoint(functools.partial(_function, chunk_size=3))(
        jnp.sin(hidden), head, tokens, 1.0
      )
      return sum(jnp.sum(w * x) for w, x in zip(weights, values))

    found = jax.jit(jax.grad(objective, (0, 1)))(hidden, head)
    of_sine, of_head = _slopes(
      jnp.sin(hidden), head, tokens, 1.0, weights, chunk_size=3
    )[0]
    expected = of_sine * jnp.cos(hidden), of_head
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)

  def test_without_jit(self):
    arguments = *_arguments()[:3], 0.7
    with jax.disable_jit():
      values = _function(*arguments, chunk_size=3)
    np.testing.assert_allclose(
      values, _in_float64(*arguments, None), rtol=1e-5, atol=1e-6
    )

  def test_one_program_for_every_temperature_without_derivative(self):
    arguments = *_arguments()[:3], jnp.float32(0.7), _arguments()[3]
    traces = []

    @jax.jit
    def slope(*arguments):
      traces.append(None)
      return jax.grad(
        functools.partial(_objective, chunk_size=3), 3, has_aux=True
      )(*arguments)

    of_temperature, _ = slope(*arguments)
    self.assertEqual(of_temperature, 0)
    slope(*arguments[:3], jnp.float32(2), arguments[4])
    self.assertLen(traces, 1)

  def test_forward_mode_is_an_error(self):
    hidden, head, tokens, _ = _arguments()
    function = lambda hidden: _function(hidden, head, tokens, 1.0)
    with self.assertRaisesRegex(TypeError, 'forward-mode'):
      jax.jvp(function, (hidden,), (hidden,))


class MemoryTest(parameterized.TestCase):
  @parameterized.parameters(0, 1)
  def test_nothing_is_as_large_as_the_logits(self, vocab_axis):
    hidden, head, tokens, weights = _arguments(jnp.float32, (40,), 3, 90)
    head = head if vocab_axis else head.T
    slopes = functools.partial(_slopes, vocab_axis=vocab_axis, chunk_size=8)
    program = jax.make_jaxpr(slopes)(hidden, head, tokens, 1.0, weights)
    self.assertEqual(max(_sizes(program.jaxpr)), 40 * 8)
    program = jax.make_jaxpr(_naive_slopes)(
      hidden, head.reshape(3, 90), tokens, 1.0, weights
    )
    self.assertEqual(max(_sizes(program.jaxpr)), 40 * 90)

  @parameterized.parameters((1, 2**20), (2**9, 2**12), (2**13, 2**10))
  def test_default_chunk(self, num_rows, expected):
    shapes = [
      jax.ShapeDtypeStruct(shape, dtype)
      for shape, dtype in (
        ((num_rows, 1), jnp.float32),
        ((1, 2**20), jnp.float32),
        ((num_rows,), jnp.int32),
      )
    ]
    program = jax.make_jaxpr(_function)(*shapes, 1.0)
    self.assertEqual(max(_sizes(program.jaxpr)), num_rows * expected)

  @parameterized.parameters(0, 1)
  def test_head_is_not_copied(self, vocab_axis):
    hidden, head, tokens, weights = _arguments(jnp.float32, (8,), 32, 4096)
    head = head if vocab_axis else head.T
    memory = (
      _slopes.lower(
        hidden,
        head,
        tokens,
        1.0,
        weights,
        vocab_axis=vocab_axis,
        chunk_size=256,
      )
      .compile()
      .memory_analysis()
    )
    self.assertLess(memory.temp_size_in_bytes, head.nbytes / 2)


class ErrorTest(parameterized.TestCase):
  @parameterized.parameters(
    ('vocab_axis', 2),
    ('vocab_axis', -1),
    ('chunk_size', 0),
    ('softcap', 0.0),
    ('softcap', -1.0),
    ('softcap', np.nan),
  )
  def test_bad_option(self, name, value):
    arguments = _arguments()[:3]
    with self.assertRaisesRegex(ValueError, f'{name}=.*: '):
      _function(*arguments, 1.0, **{name: value})

  def test_shapes_and_dtypes(self):
    hidden, head, tokens, _ = _arguments()
    for wrong in (
      (hidden, head.T, tokens, 1.0),
      (hidden, head, tokens[0], 1.0),
      (hidden, head, tokens[..., None], 1.0),
      (hidden, head[None], tokens, 1.0),
      (hidden, head, 1.0 * tokens, 1.0),
      (hidden, head, tokens, jnp.ones(_SHAPE)),
      (hidden.astype(int), head, tokens, 1.0),
    ):
      with self.assertRaises(AssertionError):
        jax.eval_shape(_function, *wrong)
    with self.assertRaises(AssertionError):
      _function(hidden, head, tokens, 1.0, vocab_axis=0)


if __name__ == '__main__':
  absltest.main()
