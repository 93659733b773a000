"""Sampled responses: where they end, how likely they were, what they depend on.

A chain is a model whose next token depends on the last one alone, by a table.
"""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from hmpo_jax.config import traced
from hmpo_jax.model import decoding
from hmpo_jax.model import sampling
from hmpo_jax.model import transformer
from hmpo_jax.training import policy
from tests import small

_PAD, _STOP, _A, _B, _C = range(5)
_NEVER = -1e9

_traces: list[None] = []


def _traced(model, params, prompts, keys, **options):
  _traces.append(None)
  return sampling.sample(
    model, params, prompts, keys, stop=_STOP, pad=_PAD, **options
  )


_sample = jax.jit(
  _traced,
  static_argnums=0,
  static_argnames=('response_len', 'greedy', 'top_k', 'top_p', 'bucket'),
)
_forward = jax.jit(policy.forward, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens, valid):
  output = transformer.apply(
    model, params, tokens, valid, transformer.positions_of(valid)
  )
  return transformer.logits(model, params, output.hidden)


def _keys(*shape, seed=0):
  return jax.random.split(jax.random.key(seed), shape)


def _zeros(model):
  shapes = jax.eval_shape(
    functools.partial(transformer.init, model), jax.random.key(0)
  )
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)


def _chain(table):
  """Model and parameters whose logits after token i are table[i]."""
  model = transformer.Transformer(
    vocab_size=5,
    num_layers=1,
    embed_dim=5,
    num_heads=1,
    num_kv_heads=1,
    head_dim=2,
    mlp_dim=1,
    rope_theta=10.0,
    norm_eps=1e-9,
    qk_bias=False,
    qk_norm=False,
    tie_embeddings=False,
  )
  params = _zeros(model)
  params['norm']['scale'] += 1
  # The norm makes a row of the identity sqrt(5) long.
  params['embed'], params['head'] = np.eye(5), np.array(table) / 5**0.5
  return model, params


def _steps(**successors):
  """Table of a chain that goes from each token to its successor for sure."""
  table = np.full((5, 5), _NEVER)
  table[:, _STOP] = 0
  for name, successor in successors.items():
    source = {'pad': _PAD, 'a': _A, 'b': _B, 'c': _C}[name]
    table[source] = np.where(np.arange(5) == successor, 0, _NEVER)
  return table


class ChainTest(parameterized.TestCase):
  def _responses(self, table, seed=0):
    """To prompts '..A' and 'ABC', two of at most four tokens to each."""
    model, params = _chain(table)
    prompts = jnp.array([[_PAD, _PAD, _A], [_A, _B, _C]])
    return _sample(
      model,
      params,
      prompts,
      _keys(2, 2, seed=seed),
      response_len=4,
      temperature=jnp.float32(1),
    )

  def test_stop_belongs_to_the_response_and_nothing_after_it(self):
    sampled = self._responses(_steps(a=_B, b=_STOP, c=_C))
    ended, cut = [_PAD, _PAD, _A, _B, _STOP, _PAD, _PAD], [_A, _B] + [_C] * 5
    np.testing.assert_array_equal(sampled.tokens, [ended, ended, cut, cut])
    np.testing.assert_array_equal(
      sampled.valid, [[0, 0, 1, 1, 1, 0, 0]] * 2 + [[1] * 7] * 2
    )
    np.testing.assert_array_equal(
      sampled.mask, [[1, 1, 0, 0]] * 2 + [[1] * 4] * 2
    )
    np.testing.assert_array_equal(sampled.logprobs, 0)

  def test_stop_at_the_last_place(self):
    sampled = self._responses(_steps(a=_B, b=_C, c=_PAD, pad=_STOP))
    np.testing.assert_array_equal(sampled.tokens[0, 3:], [_B, _C, _PAD, _STOP])
    np.testing.assert_array_equal(sampled.mask[0], [1, 1, 1, 1])

  def test_drawn_padding_token_is_a_token(self):
    sampled = self._responses(_steps(c=_PAD, pad=_A, a=_STOP))
    np.testing.assert_array_equal(
      sampled.tokens[2, 3:], [_PAD, _A, _STOP, _PAD]
    )
    for flags in (sampled.mask[2], sampled.valid[2, 3:]):
      np.testing.assert_array_equal(flags, [1, 1, 1, 0])

  def test_each_token_is_drawn_with_its_own_key(self):
    table = np.where(np.arange(5) == _STOP, _NEVER, np.zeros((5, 5)))
    sampled = self._responses(table, seed=3)
    for i, key in enumerate(_keys(2, 2, seed=3).reshape(-1)):
      for t in range(4):
        drawn = jax.random.categorical(jax.random.fold_in(key, t), table[0])
        self.assertEqual(sampled.tokens[i, 3 + t], drawn)

  # Weights 1, 2, 4 are 1, 4, 16 at temperature 1/2 and 1, 2^0.5, 2 at 2.
  @parameterized.parameters(
    (1.0, (1, 2, 4)), (0.5, (1, 4, 16)), (2.0, (1, 2**0.5, 2))
  )
  def test_frequencies_are_those_of_the_tempered_softmax(
    self, temperature, weights
  ):
    row = np.full(5, _NEVER)
    row[[_STOP, _A, _B]] = np.log([1, 2, 4])
    model, params = _chain([row] * 5)
    sampled = _sample(
      model,
      params,
      jnp.array([[_C]]),
      _keys(1, 4096),
      response_len=1,
      temperature=jnp.float32(temperature),
    )
    expected = np.array(weights) / sum(weights)
    drawn = sampled.tokens[:, 1]
    counts = np.bincount(drawn, minlength=5)[[_STOP, _A, _B]]
    self.assertEqual(counts.sum(), 4096)
    chi_square = np.sum((counts - 4096 * expected) ** 2 / (4096 * expected))
    # Two degrees of freedom: above this in one of 1000 seeds.
    self.assertLess(chi_square, 13.8)
    np.testing.assert_allclose(
      sampled.logprobs[:, 0], np.log(expected)[drawn - 1], atol=1e-5
    )

  @parameterized.parameters(128, 20)
  def test_loop_ends_with_the_longest_response(self, bucket):
    slots = []
    step = decoding.step

    def counted(*args):
      jax.debug.callback(lambda slot: slots.append(int(slot)), args[-1])
      return step(*args)

    model, _ = _chain(_steps())
    sample = jax.jit(
      functools.partial(_traced, model, response_len=50, bucket=bucket)
    )
    # A stops after one token, C after two; with the third table C never does.
    for table, expected in (
      (_steps(c=_STOP), 1),
      (_steps(c=_A), 2),
      (_steps(c=_C), 50),
    ):
      slots.clear()
      with mock.patch.object(decoding, 'step', counted):
        sample(
          _chain(table)[1],
          jnp.array([[_A, _A], [_C, _C]]),
          _keys(2, 1),
          temperature=1.0,
        )
      jax.effects_barrier()
      self.assertCountEqual(slots, range(expected))

  def test_without_a_stop_token_all_responses_are_full(self):
    model, params = _chain(_steps())
    sampled = sampling.sample(
      model,
      params,
      jnp.array([[_A]]),
      _keys(1, 2),
      response_len=3,
      stop=-1,
      pad=_PAD,
      temperature=1.0,
    )
    np.testing.assert_array_equal(sampled.tokens, [[_A] + [_STOP] * 3] * 2)
    self.assertTrue(np.all(sampled.mask))

  # Weights 1, 2, 4 and next to nothing for the others.
  @parameterized.parameters(
    ({'top_k': 2}, [_A, _B], 6 / 7),
    ({'top_p': 0.6}, [_A, _B], 6 / 7),
    ({'top_p': 0.5}, [_B], 4 / 7),
    ({'top_k': 1}, [_B], 4 / 7),
    ({'top_k': 2, 'top_p': 0.6}, [_B], 4 / 7),
  )
  def test_truncated_sampling(self, options, drawn, mass):
    row = np.full(5, -30.0)
    row[[_STOP, _A, _B]] = np.log([1, 2, 4])
    model, params = _chain([row] * 5)
    sampled = _sample(
      model,
      params,
      jnp.array([[_C]]),
      _keys(1, 256),
      response_len=2,
      temperature=jnp.float32(1),
      **options,
    )
    tokens = sampled.tokens[:, 1:]
    self.assertCountEqual(np.unique(tokens), drawn)
    np.testing.assert_allclose(sampled.kept_mass, mass, rtol=1e-5)
    # On the full support.
    share = {_A: 2 / 7, _B: 4 / 7}
    expected = np.log(np.vectorize(share.get)(tokens))
    np.testing.assert_allclose(sampled.logprobs, expected, atol=1e-5)


class TransformerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self._take_model()

  def _take_model(self, **overrides):
    self.static = traced.static(small.config(**overrides))
    self.model = policy.make_model(self.static)
    # Of these 32 responses 11 end early, after 1 to 5 tokens.
    rng = np.random.default_rng(6)
    draw = lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32)
    self.params = jax.tree.map(draw, _zeros(self.model))
    prompts = rng.integers(2, 14, (4, 6), np.int32)
    prompts[np.arange(6) < np.arange(4)[:, None]] = _PAD
    self.prompts = jnp.asarray(prompts)

  def _responses(
    self, keys, *, prompts=None, temperature=0.7, greedy=False, **options
  ):
    return _sample(
      self.model,
      self.params,
      self.prompts if prompts is None else prompts,
      keys,
      response_len=6,
      temperature=jnp.float32(temperature),
      greedy=greedy,
      **options,
    )

  def test_parts_agree(self):
    sampled = jax.device_get(self._responses(_keys(4, 8)))
    prompts = np.repeat(self.prompts, 8, axis=0)
    responses = sampled.tokens[:, 6:]
    lengths = [
      list(row).index(_STOP) + 1 if _STOP in row else 6 for row in responses
    ]
    self.assertContainsSubset({1, 2, 6}, lengths)
    mask = np.arange(6) < np.array(lengths)[:, None]
    np.testing.assert_array_equal(sampled.tokens[:, :6], prompts)
    np.testing.assert_array_equal(sampled.mask, mask)
    np.testing.assert_array_equal(
      sampled.valid, np.concatenate([prompts != _PAD, mask], 1)
    )
    np.testing.assert_array_equal(responses[~mask], _PAD)
    np.testing.assert_array_equal(sampled.logprobs[~mask], 0)
    self.assertTrue(np.all(sampled.logprobs[mask] < 0))

  @parameterized.parameters(
    ({}, 1e-5),
    ({'model__softcap': 1.0, 'model__tie_embeddings': True}, 1e-5),
    (
      {
        'model__qk_norm': True,
        'model__qk_bias': True,
        'model__num_kv_heads': 4,
      },
      1e-5,
    ),
    ({'model__dtype': 'bfloat16'}, 0.1),
  )
  def test_logprobs_are_those_of_the_training_forward(self, overrides, gap):
    self._take_model(**overrides)
    sampled = self._responses(_keys(4, 8))
    forced, *_ = _forward(
      self.static,
      self.params,
      sampled.tokens,
      sampled.valid,
      sampled.mask,
      jnp.float32(0.7),
    )
    np.testing.assert_allclose(
      sampled.logprobs, np.where(sampled.mask, forced, 0), atol=gap
    )

  def test_greedy_takes_the_likeliest_token_whatever_the_key(self):
    sampled, other = (
      self._responses(_keys(4, 8, seed=seed), greedy=True, temperature=1.0)
      for seed in (0, 1)
    )
    chex.assert_trees_all_equal(sampled, other)
    by_prompt = sampled.tokens.reshape(4, 8, -1)
    np.testing.assert_array_equal(by_prompt, by_prompt[:, :1].repeat(8, 1))
    logits = _logits(self.model, self.params, sampled.tokens, sampled.valid)
    # The logits before a token are those that chose it.
    best = jnp.argmax(logits[:, 5:-1], axis=-1)
    np.testing.assert_array_equal(
      sampled.tokens[:, 6:][sampled.mask], best[sampled.mask]
    )
    forced, *_ = _forward(
      self.static,
      self.params,
      sampled.tokens,
      sampled.valid,
      sampled.mask,
      jnp.float32(1),
    )
    np.testing.assert_allclose(
      sampled.logprobs, np.where(sampled.mask, forced, 0), atol=1e-5
    )

  def test_response_hangs_on_its_key_and_prompt_alone(self):
    keys = _keys(4, 8)
    sampled = self._responses(keys)
    moved = self._responses(keys[::-1, ::-1], prompts=self.prompts[::-1])
    np.testing.assert_array_equal(moved.tokens[::-1], sampled.tokens)
    few = self._responses(keys[2:, 5:], prompts=self.prompts[2:])
    pick = lambda x: x.reshape(4, 8, -1)[2:, 5:].reshape(6, -1)
    np.testing.assert_array_equal(few.tokens, pick(sampled.tokens))
    np.testing.assert_allclose(few.logprobs, pick(sampled.logprobs), atol=1e-5)

  @parameterized.parameters(1, 2, 4, 5, 6)
  def test_size_of_buckets_changes_no_token(self, bucket):
    keys = _keys(4, 8)
    sampled, other = (
      self._responses(keys, bucket=size) for size in (128, bucket)
    )
    np.testing.assert_array_equal(other.tokens, sampled.tokens)
    np.testing.assert_array_equal(other.mask, sampled.mask)
    np.testing.assert_allclose(other.logprobs, sampled.logprobs, atol=1e-5)

  def test_truncation_that_leaves_all_changes_nothing(self):
    keys = _keys(4, 8)
    sampled, other = (self._responses(keys, top_k=k) for k in (0, 14))
    np.testing.assert_array_equal(other.tokens, sampled.tokens)
    np.testing.assert_allclose(other.logprobs, sampled.logprobs, atol=1e-5)
    self.assertIsNone(sampled.kept_mass)
    np.testing.assert_allclose(other.kept_mass[other.mask], 1, rtol=1e-6)

  def test_runs_under_vmap_are_those_by_themselves(self):
    keys = jnp.stack([_keys(4, 8), _keys(4, 8, seed=1)])
    # The second run's responses are longer: fewer chances to stop.
    temperatures = jnp.array([0.7, 0.2])
    sample = lambda keys, temperature: sampling.sample(
      self.model,
      self.params,
      self.prompts,
      keys,
      response_len=6,
      stop=_STOP,
      pad=_PAD,
      temperature=temperature,
      bucket=4,
    )
    both = jax.jit(jax.vmap(sample))(keys, temperatures)
    for i in range(2):
      alone = self._responses(keys[i], temperature=temperatures[i])
      np.testing.assert_array_equal(both.tokens[i], alone.tokens)
      np.testing.assert_array_equal(both.mask[i], alone.mask)
      np.testing.assert_allclose(both.logprobs[i], alone.logprobs, atol=1e-5)
    # No buffer is selected between: the loop ends for all runs at once.
    program = jax.jit(jax.vmap(sample)).lower(keys, temperatures).as_text()
    self.assertNotIn(f'xi1>, tensor<2x32x{self.model.num_kv_heads}x4x', program)

  def test_keys_decide(self):
    keys = _keys(4, 8)
    chex.assert_trees_all_equal(self._responses(keys), self._responses(keys))
    shared = keys[:, [0, 1, 2, 3, 0, 1, 2, 3]]
    by_prompt = self._responses(shared).tokens.reshape(4, 8, -1)
    np.testing.assert_array_equal(by_prompt[:, :4], by_prompt[:, 4:])
    for group in by_prompt:
      self.assertGreater(len(np.unique(group, axis=0)), 1)

  def test_compiles_once(self):
    self._responses(_keys(4, 8))
    before = len(_traces)
    self.params = jax.tree.map(lambda leaf: 2 * leaf, self.params)
    self._responses(
      _keys(4, 8, seed=1), prompts=self.prompts + 1, temperature=2.0
    )
    self.assertLen(_traces, before)


if __name__ == '__main__':
  absltest.main()
