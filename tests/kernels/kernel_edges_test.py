"""Kernels at the edges of what they take: overflow, nothing at all, NumPy."""

import contextlib
import math
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.kernels import advantages
from hmpo_jax.kernels import histograms
from hmpo_jax.kernels import kl
from hmpo_jax.kernels import losses
from hmpo_jax.kernels import means
from hmpo_jax.ops import attention
from hmpo_jax.ops import cached_attention
from hmpo_jax.ops import logprobs
from hmpo_jax.ops import products
from hmpo_jax.ops import truncation
from hmpo_jax.ops import vocabulary
from hmpo_jax.optim import muon
from hmpo_jax.optim import muon_clip
from hmpo_jax.optim import orthogonal
from hmpo_jax.optim import qk_weights
from tests import reference

_EPS = {'clip_eps_low': 0.2, 'clip_eps_high': 0.2}
_NO_CLIP = {'clip_eps_low': 1.0, 'clip_eps_high': math.inf}
_LOSSES = {
  'sequence': ('power_mean', {'p': 1.0} | _EPS),
  'token': ('power_mean', {'p': 0.0, 'clip': 'token'} | _EPS),
  'token_log': ('power_mean', {'p': 1.0, 'clip': 'token_log'} | _EPS),
  'arithmetic_harmonic': ('arithmetic_harmonic', _EPS),
  'gspo_token': ('gspo_token', _EPS),
  'grpo': ('grpo', _EPS),
  'grpo_dual': ('grpo', {'dual_clip': 3.0} | _EPS),
  'grpo_no_clip': ('grpo', _NO_CLIP),
  'cispo': ('cispo', _EPS),
  'cispo_no_clip': ('cispo', _NO_CLIP),
  'sapo': ('sapo', {}),
  'reinforce': ('reinforce', {}),
}


def _loss_and_gradient(case, log_ratio, advantage):
  """Of two tokens, the first at this log-ratio, the second at 0; no bound."""
  name, options = _LOSSES[case]
  new = jnp.full((1, 2), -1.0)
  old = new - jnp.array([[log_ratio, 0.0]])
  of = lambda new: losses.LOSSES[name](
    new,
    old,
    jnp.array([advantage]),
    jnp.ones((1, 2), bool),
    log_ratio_max=math.inf,
    **options,
  )[0]
  return jax.value_and_grad(of)(new)


class OverflowTest(parameterized.TestCase):
  @parameterized.parameters(44.0, 89.0, 100.0, 1e4, 3e38)
  def test_an_open_gate_is_flat(self, log_ratio):
    # 4 / tau and a slope of 0 at the one, 2 / tau and 1 at the other.
    for advantage, tau in ((1.0, 1.0), (-1.0, 1.05)):
      loss, gradient = _loss_and_gradient('sapo', log_ratio, advantage)
      np.testing.assert_allclose(loss, -3 / tau * advantage, rtol=1e-6)
      np.testing.assert_allclose(gradient, [[0.0, -advantage / 2]], rtol=1e-6)

  @parameterized.product(case=tuple(_LOSSES), log_ratio=(100.0, 1e4))
  def test_an_advantage_of_0_is_no_gradient(self, case, log_ratio):
    # Infinity times 0 is NaN.
    loss, gradient = _loss_and_gradient(case, log_ratio, 0.0)
    self.assertEqual(loss, 0)
    np.testing.assert_array_equal(gradient, np.zeros((1, 2)))


class OrderTest(parameterized.TestCase):
  """log x = (0, 5, -5): the largest value decides, and then the smallest."""

  def _of(self, p, dtype=jnp.float32):
    x, mask = jnp.array([[0.0, 5.0, -5.0]], dtype), jnp.ones((1, 3), bool)
    of = lambda p, x: means.log_power_mean(x, mask, p)[0]
    slopes = jax.grad(of, (0, 1))(jnp.asarray(p, dtype), x)
    return of(p, x), *slopes, means.token_weights(x, mask, p)

  @parameterized.product(
    p=(1e18, 1e20, 1e38, 3e38, math.inf),
    sign=(1.0, -1.0),
    dtype=(np.float32, np.float64),
  )
  def test_huge_orders(self, p, sign, dtype):
    with reference.x64() if dtype == np.float64 else contextlib.nullcontext():
      value, slope, of_x, weights = self._of(sign * p, dtype)
      self.assertEqual(value, 5 * sign)
      # ln 3 / p^2, below the least number of float32.
      np.testing.assert_allclose(slope, math.log(3) / p**2, 1e-12, atol=2e-38)
      chosen = np.float32([[0, sign > 0, sign < 0]])
      np.testing.assert_array_equal(of_x, chosen)
      np.testing.assert_array_equal(weights, chosen)

  def test_equal_values_share_the_weight_of_an_infinite_order(self):
    x, mask = jnp.array([[2.0, 2.0, -5.0]]), jnp.ones((1, 3), bool)
    np.testing.assert_array_equal(
      means.token_weights(x, mask, math.inf), [[0.5, 0.5, 0.0]]
    )

  def test_an_order_that_is_no_number(self):
    self.assertTrue(np.isnan(self._of(math.nan)[0]))

  def test_series_are_exact_in_float64(self):
    # Just on the side of the series: by mpmath e^x / (e^x + 99), x = .49999.
    x, mask = np.zeros((1, 100)), np.ones((1, 100), bool)
    x[0, 0] = 0.49999
    with reference.x64():
      weight = means.token_weights(jnp.asarray(x), mask, 1.0)[0, 0]
      self.assertAlmostEqual(
        float(weight) / 0.016380784900462977, 1.0, delta=4e-16
      )

  @parameterized.parameters(
    (0.0, -math.inf), (-math.inf, -math.inf), (math.inf, 0.0)
  )
  def test_iterates_of_0_or_infinity_are_no_numbers(self, log_a, log_h):
    for later in means.arithmetic_harmonic(log_a, log_h, 3):
      self.assertFalse(np.any(np.isfinite(later[1:])))

  def test_iterates_of_numbers(self):
    log_a, log_h = means.arithmetic_harmonic(math.log(4.0), math.log(1.0), 1)
    np.testing.assert_allclose(np.exp(log_a), [4.0, 2.5], rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_h), [1.0, 1.6], rtol=1e-6)


class VocabularyTest(parameterized.TestCase):
  @parameterized.product(vocab_axis=(0, 1), chunk_size=(1, 2, 3))
  def test_tokens_that_can_not_be_chosen(self, vocab_axis, chunk_size):
    logits = np.array([0.0, -np.inf, 1.5], np.float32)
    hidden = jnp.ones((1, 1))
    head = jnp.asarray(logits[None] if vocab_axis else logits[:, None])

    def of(hidden, head):
      logprob, entropy = vocabulary.token_logprobs_and_entropy(
        hidden,
        head,
        jnp.array([2]),
        1.0,
        vocab_axis=vocab_axis,
        chunk_size=chunk_size,
      )
      return logprob[0], entropy[0]

    # With q = 1 / (1 + e^1.5): log(1 - q) and -q log q - (1 - q) log(1 - q).
    q = 1 / (1 + math.exp(1.5))
    logprob, entropy = of(hidden, head)
    np.testing.assert_allclose(logprob, math.log(1 - q), rtol=1e-6)
    np.testing.assert_allclose(entropy, 0.47505, atol=5e-6)
    for i, slope in ((0, q), (1, -1.5 * q * (1 - q))):
      of_hidden, of_head = jax.grad(lambda *x, i=i: of(*x)[i], (0, 1))(
        hidden, head
      )
      np.testing.assert_allclose(of_head.ravel(), [-slope, 0, slope], rtol=1e-5)
      np.testing.assert_allclose(of_hidden, [[1.5 * slope]], rtol=1e-5)


class NothingTest(parameterized.TestCase):
  @parameterized.parameters((0, 5), (2, 0), (0, 100), (0, 0))
  def test_attention(self, batch, length):
    query = jnp.ones((batch, length, 4, 8))
    key = jnp.ones((batch, length, 2, 8))
    valid = jnp.ones((batch, length), bool)
    for of in (
      attention.causal_attention,
      attention.plain,
      attention.blockwise,
    ):
      mixed, largest = of(query, key, key, valid)
      self.assertEqual(mixed.shape, query.shape)
      np.testing.assert_array_equal(largest, np.full(4, -np.inf, np.float32))
      slopes = jax.grad(lambda *x, of=of: jnp.sum(of(*x, valid)[0]), (0, 1, 2))(
        query, key, key
      )
      self.assertEqual(
        [x.shape for x in slopes], [query.shape, key.shape, key.shape]
      )

  def test_a_block_size_is_checked_of_few_tokens_too(self):
    x = jnp.ones((1, 2, 1, 4))
    with self.assertRaisesRegex(ValueError, 'block_size=0: must be positive'):
      attention.causal_attention(x, x, x, jnp.ones((1, 2), bool), block_size=0)

  @parameterized.parameters(0, 3)
  def test_cached_attention(self, prefixes):
    result = cached_attention.cached_attention(
      jnp.ones((0, 4, 8)),
      jnp.ones((prefixes, 2, 3, 8)),
      jnp.ones((prefixes, 2, 3, 8)),
      jnp.ones((prefixes, 3), bool),
      jnp.ones((0, 2, 5, 8)),
      jnp.ones((0, 2, 5, 8)),
      1,
    )
    self.assertEqual(result.shape, (0, 4, 8))

  @parameterized.parameters(((0, 4),), ((4, 0),), ((0, 3, 4),), ((2, 0, 4),))
  def test_orthogonalize(self, shape):
    full = jnp.eye(4)
    empty, done = orthogonal.orthogonalize([jnp.ones(shape), full])
    self.assertEqual(empty.shape, shape)
    np.testing.assert_array_equal(done, orthogonal.orthogonalize([full])[0])

  def test_muon(self):
    params = {'none': jnp.ones((0, 4)), 'one': jnp.ones((4, 4))}
    specs = {name: muon.optax.contrib.MuonDimensionNumbers() for name in params}
    tx = muon.muon(1.0, dimension_numbers=specs, adam_learning_rate=1.0)
    updates, _ = tx.update(params, tx.init(params), params)
    chex.assert_trees_all_equal_shapes(updates, params)
    self.assertTrue(np.all(np.isfinite(updates['one'])))

  @parameterized.parameters((0, 5), (2, 0))
  def test_losses_and_kl(self, batch, length):
    x, mask = jnp.ones((batch, length)), jnp.ones((batch, length), bool)
    for name, options in _LOSSES.values():
      loss = lambda new, name=name, options=options: losses.LOSSES[name](
        new, x, jnp.ones(batch), mask, **options
      )[0]
      value, gradient = jax.value_and_grad(loss)(x)
      self.assertEqual(value, 0)
      self.assertEqual(gradient.shape, x.shape)
    self.assertEqual(kl.kl_penalty(x, x, mask, estimator='k3')[0], 0)
    self.assertEqual(kl.kl_metrics(x, x, mask)['kl_old/k3'], 0)
    self.assertEqual(
      kl.kl_in_reward(x, x, mask, estimator='k1').shape, (batch,)
    )
    self.assertEqual(jnp.sum(histograms.counts(x, mask)), 0)

  def test_rows(self):
    hidden, head = jnp.ones((0, 4)), jnp.ones((4, 7))
    tokens = jnp.zeros(0, int)
    logits = products.matmul(hidden, head)
    for values in (
      logprobs.token_logprobs(logits, tokens, 1.0),
      logprobs.entropy(logits, 1.0),
      *vocabulary.token_logprobs_and_entropy(hidden, head, tokens, 1.0),
      truncation.kept(logits, 2, 0.9)[1],
    ):
      self.assertEqual(values.shape, (0,))


def _numpy_calls():
  """Kernels, and float64 arguments of theirs."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape)
  mask = np.array([[1, 1, 0], [1, 1, 1]], bool)
  pair = (
    np.array([[-np.inf, -1.0, 0.0], [-1.0, -2.0, -3.0]]),
    np.array([[-np.inf, -1.5, 0.0], [-1.0, -np.inf, -2.0]]),
  )
  block = qk_weights.Attention(
    2, 2, (qk_weights.Weight(('q',), -1),), (qk_weights.Weight(('k',), -1),)
  )

  def clip(q, k, max_logits):
    tx, params = muon_clip.qk_clip(1.0, attention=block), {'q': q, 'k': k}
    return tx.update(params, tx.init(params), params, max_logits=max_logits)

  yield (
    'mean',
    lambda x, p: (
      means.log_power_mean(x, mask, p),
      means.token_weights(x, mask, p),
    ),
    (normal(2, 3), np.array([1.0, -1.0])),
  )
  yield (
    'iterates',
    lambda a, h: (
      means.arithmetic_harmonic(a, h, 2),
      means.arithmetic_harmonic_limit(a, h),
    ),
    (normal(3), normal(3)),
  )
  for case, (name, options) in _LOSSES.items():
    yield (
      case,
      lambda *x, name=name, options=options: losses.LOSSES[name](
        *x, mask, **options
      ),
      (*pair, np.array([1.0, -1.0])),
    )
  yield 'kl', lambda *x: kl.kl_penalty(*x, mask, estimator='k3'), pair
  yield (
    'kl_in_reward',
    lambda *x: kl.kl_in_reward(*x, mask, estimator='k1'),
    pair,
  )
  yield 'advantages', advantages.group_advantages, (normal(2, 4),)
  yield (
    'logprobs',
    lambda x: (
      logprobs.token_logprobs(x, np.array([0, 1]), 1.0),
      logprobs.entropy(x, 1.0),
    ),
    (normal(2, 4),),
  )
  yield (
    'vocabulary',
    lambda *x: vocabulary.token_logprobs_and_entropy(*x, np.array([0, 1]), 1.0),
    (normal(2, 4), normal(4, 7)),
  )
  yield (
    'attention',
    lambda *x: attention.causal_attention(*x, np.ones((2, 5), bool)),
    (normal(2, 5, 4, 8), *normal(2, 2, 5, 2, 8)),
  )
  yield (
    'cached_attention',
    lambda *x: cached_attention.cached_attention(
      *x[:3], np.ones((1, 3), bool), *x[3:], 2
    ),
    (normal(2, 4, 8), *normal(2, 1, 2, 3, 8), *normal(2, 2, 2, 5, 8)),
  )
  yield 'matmul', products.matmul, (normal(2, 4), normal(4, 3))
  yield (
    'swiglu',
    products.swiglu,
    (normal(2, 4), *normal(2, 4, 3), normal(3, 4)),
  )
  yield (
    'orthogonalize',
    lambda x: orthogonal.orthogonalize([x]),
    (normal(2, 3),),
  )
  yield 'qk_clip', clip, (normal(3, 4), normal(3, 4), np.array([4.0, 0.5]))


class NumpyTest(parameterized.TestCase):
  """Float64 of NumPy, outside jit, where JAX is at 32 bits."""

  @parameterized.named_parameters(*_numpy_calls())
  def test_float64_is_taken_as_float32(self, of, arrays):
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      wide = of(*arrays)
    narrow = of(*map(np.float32, arrays))
    chex.assert_trees_all_equal_shapes_and_dtypes(wide, narrow)
    chex.assert_trees_all_close(wide, narrow, rtol=1e-5, atol=1e-6)

  def test_tokens_that_both_policies_rule_out(self):
    x = np.array([[-np.inf, -1.0]])
    loss, _ = losses.power_mean_loss(
      x, x, np.ones(1), np.ones((1, 2), bool), p=-1.0, **_EPS
    )
    self.assertEqual(loss, -1)

  def test_rewards_near_the_largest_float(self):
    values, _ = advantages.group_advantages(np.array([[3e38, -3e38, 0.0]]))
    np.testing.assert_array_equal(values, [[1.0, -1.0, 0.0]])


if __name__ == '__main__':
  absltest.main()
