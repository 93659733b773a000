"""Log-probabilities and entropies: by hand and against float64 loops."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.ops import logprobs
from tests import reference

_token_logprobs = jax.jit(logprobs.token_logprobs)
_entropy = jax.jit(logprobs.entropy)
_of_sum = lambda f: jax.jit(jax.grad(lambda *args: jnp.sum(f(*args))))
_slope_of_logprobs = _of_sum(logprobs.token_logprobs)
_slope_of_entropy = _of_sum(logprobs.entropy)


def _logits(scale=3.0):
  """Logits [2, 3, 7] and tokens [2, 3]."""
  rng = np.random.default_rng(0)
  return (
    jnp.asarray(scale * rng.normal(size=(2, 3, 7)), jnp.float32),
    jnp.asarray(rng.integers(0, 7, size=(2, 3))),
  )


class TokenLogprobsTest(parameterized.TestCase):
  # Odds 1 to 3; at temperature 1/2 odds 1 to 9.
  @parameterized.parameters(
    (1.0, 0, 1 / 4), (1.0, 1, 3 / 4), (0.5, 0, 1 / 10), (0.5, 1, 9 / 10)
  )
  def test_by_hand(self, temperature, token, probability):
    value = _token_logprobs(
      jnp.log(jnp.array([1.0, 3.0])), jnp.array(token), temperature
    )
    np.testing.assert_allclose(jnp.exp(value), probability, rtol=1e-6)

  @parameterized.product(scale=(1e-3, 3.0, 1e4), temperature=(0.7, 1.0, 3.0))
  def test_float64_loop(self, scale, temperature):
    logits, tokens = _logits(scale)
    values = _token_logprobs(logits, tokens, temperature)
    for index in np.ndindex(tokens.shape):
      expected = reference.log_softmax(logits[index], np.float32(temperature))[
        tokens[index]
      ]
      np.testing.assert_allclose(
        values[index], expected, rtol=1e-6, atol=1e-7 * scale
      )

  def test_probabilities_sum_to_one(self):
    logits, _ = _logits()
    total = sum(
      jnp.exp(_token_logprobs(logits, jnp.full((2, 3), token), 0.7))
      for token in range(7)
    )
    np.testing.assert_allclose(total, 1, rtol=1e-6)

  @parameterized.parameters(jnp.bfloat16, jnp.float16)
  def test_narrow_logits_are_computed_in_float32(self, dtype):
    logits, tokens = _logits()
    narrow = logits.astype(dtype)
    wide = narrow.astype(jnp.float32)
    for temperature in (1.0, jnp.asarray(0.7, dtype)):
      value = _token_logprobs(narrow, tokens, temperature)
      self.assertEqual(value.dtype, jnp.float32)
      np.testing.assert_array_equal(
        value, _token_logprobs(wide, tokens, temperature)
      )
      np.testing.assert_array_equal(
        _entropy(narrow, temperature), _entropy(wide, temperature)
      )

  def test_gradient(self):
    # ([v = token] - pi_v) / temperature.
    logits, tokens = _logits()
    slope = _slope_of_logprobs(logits, tokens, 0.5)
    expected = 2 * (jax.nn.one_hot(tokens, 7) - jax.nn.softmax(2 * logits))
    np.testing.assert_allclose(slope, expected, atol=1e-6)

  def test_token_that_cannot_be_chosen(self):
    logits = jnp.array([0.0, -jnp.inf, jnp.log(3.0)])
    values = [_token_logprobs(logits, jnp.array(i), 1.0) for i in range(3)]
    np.testing.assert_allclose(np.exp(values), [1 / 4, 0, 3 / 4], rtol=1e-6)
    self.assertEqual(values[1], -np.inf)
    np.testing.assert_allclose(
      _slope_of_logprobs(logits, jnp.array(0), 1.0),
      [3 / 4, 0, -3 / 4],
      rtol=1e-6,
    )

  # Logits of P + L tokens where L are meant, and the one before that is due.
  @parameterized.parameters((2, 4), (2, 2), (3,), (2, 3, 1), (3, 2))
  def test_off_by_one_raises(self, *shape):
    logits, _ = _logits()
    with self.assertRaisesRegex(AssertionError, 'shape'):
      jax.eval_shape(
        logprobs.token_logprobs, logits, jnp.zeros(shape, int), 1.0
      )

  def test_tokens_must_be_whole_numbers(self):
    logits, tokens = _logits()
    with self.assertRaisesRegex(TypeError, 'int'):
      jax.eval_shape(logprobs.token_logprobs, logits, 1.0 * tokens, 1.0)


class EntropyTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('uniform', [2.0, 2.0, 2.0, 2.0], np.log(4)),
    ('two_of_four', [0.0, -np.inf, 0.0, -np.inf], np.log(2)),
    ('certain', [0.0, -np.inf, -np.inf, -np.inf], 0.0),
    ('nearly_certain', [1e4, 0.0, 0.0, 0.0], 0.0),
    (
      'one_to_three',
      [0.0, np.log(3), -np.inf, -np.inf],
      2 * np.log(2) - 3 / 4 * np.log(3),
    ),
  )
  def test_by_hand(self, logits, expected):
    logits = jnp.array(logits, jnp.float32)
    np.testing.assert_allclose(
      _entropy(logits, 1.0), expected, rtol=1e-6, atol=1e-7
    )
    # -pi_v (log pi_v + H) at each logit.
    pi = np.exp(jax.nn.log_softmax(logits))
    expected_slope = [-x * (np.log(x) + expected) if x else 0.0 for x in pi]
    np.testing.assert_allclose(
      _slope_of_entropy(logits, 1.0), expected_slope, rtol=1e-5, atol=1e-6
    )

  @parameterized.parameters(0.3, 1.0, 4.0)
  def test_float64_loop(self, temperature):
    logits, _ = _logits()
    values = _entropy(logits, temperature)
    for index in np.ndindex(values.shape):
      log_pi = reference.log_softmax(logits[index], np.float32(temperature))
      expected = -sum(np.exp(x) * x for x in log_pi)
      np.testing.assert_allclose(values[index], expected, rtol=1e-5, atol=1e-6)

  def test_one_program_for_every_temperature(self):
    logits, tokens = _logits()
    traces = []

    @jax.jit
    def run(temperature):
      traces.append(None)
      return (
        logprobs.token_logprobs(logits, tokens, temperature),
        logprobs.entropy(logits, temperature),
      )

    cold, hot = run(jnp.float32(0.1)), run(jnp.float32(10.0))
    self.assertLen(traces, 1)
    self.assertTrue(np.all(cold[1] < hot[1]))


if __name__ == '__main__':
  absltest.main()
