"""The model against float64 loops, and what must not change its logits."""

import functools
from typing import NamedTuple

from absl.testing import absltest
from absl.testing import parameterized
import chex
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmpo_jax.model import decoding
from hmpo_jax.model import layers
from hmpo_jax.model import transformer
from hmpo_jax.optim import muon_clip

_VARIANTS: tuple = (
  ('grouped', {}),
  (
    'multi_query_with_norm_untied',
    {'num_kv_heads': 1, 'qk_norm': True, 'tie_embeddings': False},
  ),
  ('multi_head_with_bias', {'num_kv_heads': 4, 'qk_bias': True}),
)

_VALID = (
  np.array(
    [
      [1, 1, 1, 1, 1, 1, 1],
      [0, 0, 1, 1, 1, 1, 1],
      [1, 1, 1, 1, 0, 0, 0],
      [0, 1, 1, 1, 1, 0, 0],
    ]
  )
  == 1
)


class _Found(NamedTuple):
  """What a pass over tokens comes to."""

  logits: jax.Array  # [B, S, V]
  max_logits: jax.Array  # [N_l, H]


def _find(model, params, tokens, valid, positions):
  output = transformer.apply(model, params, tokens, valid, positions)
  return _Found(
    transformer.logits(model, params, output.hidden), output.max_logits
  )


_apply = jax.jit(_find, static_argnums=0)


def _model(**overrides):
  sizes = {
    'vocab_size': 11,
    'num_layers': 2,
    'embed_dim': 8,
    'num_heads': 4,
    'num_kv_heads': 2,
    'head_dim': 6,
    'mlp_dim': 12,
    'rope_theta': 50.0,
    'norm_eps': 1e-6,
    'qk_bias': False,
    'qk_norm': False,
    'tie_embeddings': True,
  }
  return transformer.Transformer(**sizes | overrides)


def _shapes(model):
  return jax.eval_shape(
    functools.partial(transformer.init, model), jax.random.key(0)
  )


def _params(model, seed=0):
  """Every leaf random, scales around 1: no term is silent."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    offset = path[-1].key == 'scale'
    return jnp.asarray(offset + 0.5 * rng.normal(size=leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, _shapes(model))


def _tokens(shape, seed=0):
  return np.random.default_rng(seed).integers(0, 11, shape, np.int32)


def _run(model, params, tokens, valid):
  valid = jnp.asarray(valid)
  return _apply(model, params, tokens, valid, transformer.positions_of(valid))


@functools.partial(jax.jit, static_argnums=0)
def _pull_back(model, params, tokens, valid, logits_slope, max_logits_slope):
  """The output, and the gradient of its logits and max_logits, weighted."""

  def weighted(params):
    output = _find(
      model, params, tokens, valid, transformer.positions_of(valid)
    )
    return jnp.sum(output.logits * logits_slope) + jnp.sum(
      output.max_logits * max_logits_slope
    ), output

  grads, output = jax.grad(weighted, has_aux=True)(params)
  return output, grads


def _reference(model, params, tokens, valid):
  """Logits [B, S, V], 0 on padding, and [N_l, H] largest attention logits.

  Float64; padding is taken out of a row before anything is computed.
  """
  tree = jax.tree.map(np.float64, params)
  logits = np.zeros((*tokens.shape, model.vocab_size))
  largest = np.full((model.num_layers, model.num_heads), -np.inf)
  for i, row in enumerate(tokens):
    x = tree['embed'][row[valid[i]]]
    for n in range(model.num_layers):
      layer = jax.tree.map(lambda leaf, n=n: leaf[n], tree['layers'])
      normed = _rms_norm(model, layer['attention_norm'], x)
      attended, row_largest = _attention(model, layer['attention'], normed)
      largest[n] = np.maximum(largest[n], row_largest)
      x = x + attended
      normed = _rms_norm(model, layer['mlp_norm'], x)
      gate, up, down = (
        layer['mlp'][name]['kernel'] for name in ('gate', 'up', 'down')
      )
      gated = normed @ gate
      x = x + (gated / (1 + np.exp(-gated)) * (normed @ up)) @ down
    head = tree['embed'].T if model.tie_embeddings else tree['head']
    logits[i, valid[i]] = _rms_norm(model, tree['norm'], x) @ head
  return logits, largest


def _rms_norm(model, leaves, x):
  square = np.mean(x**2, axis=-1, keepdims=True)
  return x / np.sqrt(square + model.norm_eps) * leaves['scale']


def _attention(model, block, x):
  """Causal attention of one row, and the largest logit [H] it looked at."""

  def project(name):
    leaves = block[name]
    heads = np.einsum('sd,dhw->shw', x, leaves['kernel'])
    heads = heads + leaves.get('bias', 0)
    if f'{name}_norm' in block:
      heads = _rms_norm(model, block[f'{name}_norm'], heads)
    return heads

  query, key = (_turned(model, project(name)) for name in ('query', 'key'))
  value = project('value')
  mixed, largest = np.zeros_like(query), np.full(model.num_heads, -np.inf)
  for t, head in np.ndindex(*query.shape[:2]):
    read = head // (model.num_heads // model.num_kv_heads)
    scores = np.array([query[t, head] @ key[s, read] for s in range(t + 1)])
    scores /= model.head_dim**0.5
    largest[head] = max(largest[head], scores.max())
    weights = np.exp(scores) / np.exp(scores).sum()
    mixed[t, head] = weights @ value[: t + 1, read]
  return np.einsum('shw,hwd->sd', mixed, block['out']['kernel']), largest


def _turned(model, x):
  """Each pair (x_j, x_{j + Dh/2}) as a complex number, turned by its angle."""
  half = model.head_dim // 2
  pairs = x[..., :half] + 1j * x[..., half:]
  speeds = model.rope_theta ** (-2 * np.arange(half) / model.head_dim)
  angles = np.arange(len(x))[:, None, None] * speeds
  pairs = pairs * np.exp(1j * angles)
  return np.concatenate([pairs.real, pairs.imag], -1)


class ForwardTest(parameterized.TestCase):
  @parameterized.named_parameters(*_VARIANTS)
  def test_equals_float64_loops_without_padding(self, overrides):
    model = _model(**overrides)
    params, tokens = _params(model), _tokens((4, 7))
    output = _run(model, params, tokens, _VALID)
    logits, largest = _reference(model, params, tokens, _VALID)
    np.testing.assert_allclose(
      np.where(_VALID[:, :, None], output.logits, 0), logits, atol=1e-5
    )
    np.testing.assert_allclose(output.max_logits, largest, atol=1e-5)
    self.assertEqual(output.logits.dtype, jnp.float32)

  def test_future_tokens_change_no_logit(self):
    model = _model()
    params, valid = _params(model), np.ones((4, 7), bool)
    tokens = np.repeat(_tokens((1, 7)), 4, axis=0)
    future = np.arange(7) > np.arange(4)[:, None]
    changed = np.where(future, (tokens + 1) % 11, tokens)
    before = _run(model, params, tokens, valid).logits
    after = _run(model, params, changed, valid).logits
    for i in range(4):
      np.testing.assert_allclose(
        after[i, : i + 1], before[i, : i + 1], atol=1e-6
      )
      self.assertGreater(np.abs(after[i, i + 1] - before[i, i + 1]).max(), 0.1)

  def test_padding_is_inert_in_value_and_gradient(self):
    model = _model()
    params, short = _params(model), _tokens((1, 4))
    slope = np.random.default_rng(2).normal(size=(1, 4, 11))
    plain, expected = _pull_back(
      model, params, short, np.ones((1, 4), bool), slope, 0.0
    )
    valid = (
      np.array(
        [
          [0, 0, 0, 1, 1, 1, 1],
          [1, 1, 1, 1, 0, 0, 0],
          [0, 1, 1, 1, 1, 0, 0],
          [0, 0, 1, 1, 1, 1, 0],
        ]
      )
      == 1
    )
    tokens, slopes = _tokens((4, 7), seed=1), np.zeros((4, 7, 11))
    tokens[valid] = np.tile(short[0], 4)
    slopes[valid] = np.tile(slope[0], (4, 1))
    output, grads = _pull_back(model, params, tokens, valid, slopes, 0.0)
    np.testing.assert_allclose(
      output.logits[valid], np.tile(plain.logits[0], (4, 1)), atol=5e-6
    )
    np.testing.assert_allclose(output.max_logits, plain.max_logits, rtol=1e-6)
    grads = jax.tree.map(lambda leaf: leaf / 4, grads)
    chex.assert_trees_all_close(grads, expected, rtol=1e-5, atol=1e-5)

  def test_row_of_padding_only_stays_finite(self):
    model = _model()
    valid = _VALID.copy()
    valid[1] = False
    chex.assert_tree_all_finite(
      _pull_back(
        model, _params(model), _tokens((4, 7)), valid, np.ones((4, 7, 11)), 0.0
      )
    )

  def test_largest_logit_passes_no_gradient(self):
    model = _model()
    _, grads = _pull_back(
      model, _params(model), _tokens((4, 7)), _VALID, np.zeros((4, 7, 11)), 1.0
    )
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))

  def test_only_distances_between_positions_count(self):
    model = _model()
    params, tokens = _params(model), _tokens((4, 7))
    valid = np.ones((4, 7), bool)
    positions = transformer.positions_of(jnp.asarray(valid))
    logits, shifted, stretched = (
      _apply(model, params, tokens, valid, places).logits
      for places in (positions, positions + 9, 2 * positions)
    )
    np.testing.assert_allclose(shifted, logits, atol=1e-5)
    self.assertGreater(np.abs(stretched - logits).max(), 0.1)

  def test_positions_by_hand(self):
    valid = jnp.array([[0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [0] * 5]) == 1
    np.testing.assert_array_equal(
      transformer.positions_of(valid),
      [[0, 0, 0, 1, 2], [0, 1, 1, 1, 1], [0] * 5],
    )


class PrecisionTest(parameterized.TestCase):
  def test_softcap_by_hand(self):
    model, capped = _model(), _model(softcap=1.0)
    params, tokens = _params(model), _tokens((4, 7))
    plain = _run(model, params, tokens, _VALID).logits
    self.assertGreater(np.abs(plain).max(), 2)
    np.testing.assert_allclose(
      _run(capped, params, tokens, _VALID).logits, np.tanh(plain), atol=1e-5
    )

  @parameterized.named_parameters(*_VARIANTS)
  def test_bfloat16_is_near_and_its_gradients_are_float32(self, overrides):
    params, tokens = _params(_model(**overrides)), _tokens((4, 7))
    slope = np.random.default_rng(3).normal(size=(4, 7, 11))
    (output, grads), (expected, wide_grads) = (
      _pull_back(
        _model(dtype=dtype, **overrides), params, tokens, _VALID, slope, 0.0
      )
      for dtype in ('bfloat16', 'float32')
    )
    chex.assert_type([*output, *jax.tree.leaves(grads)], jnp.float32)
    size = np.abs(expected.logits).max()
    difference = np.abs(output.logits - expected.logits)[_VALID]
    self.assertBetween(difference.max(), 1e-4 * size, 0.05 * size)
    for ours, wide in zip(jax.tree.leaves(grads), jax.tree.leaves(wide_grads)):
      np.testing.assert_allclose(
        np.linalg.norm(ours - wide), 0, atol=0.25 * np.linalg.norm(wide)
      )

  @parameterized.parameters('light', 'dots', 'layer')
  def test_what_is_computed_again_changes_nothing_but_memory(self, remat):
    tokens = _tokens((4, 7))
    arguments = tokens, jnp.asarray(_VALID), np.ones((4, 7, 11)), 0.0
    results, sizes = [], []
    for choice in ('none', remat):
      model = _model(remat=choice, mlp_dim=64, num_layers=4)
      params = _params(model)
      results.append(_pull_back(model, params, *arguments))
      program = _pull_back.lower(model, params, *arguments).compile()
      sizes.append(program.memory_analysis().temp_size_in_bytes)
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)
    self.assertLess(sizes[1], sizes[0])


# Two prompts of three tokens, the second padded, each with two responses.
_PROMPT_VALID = np.array([[1, 1, 1], [0, 0, 1]]) == 1


class DecodingTest(parameterized.TestCase):
  def _decode(self, model, params, tokens, room):
    """[4, 5, V] logits after the prompt and after each of four tokens."""
    prompts, responses = tokens[::2, :3], tokens[:, 3:]
    logits, prefix = decoding.prefill(
      model, params, prompts, jnp.asarray(_PROMPT_VALID)
    )
    found = [jnp.repeat(logits, 2, axis=0)]
    weights = decoding.weights(model, params)
    cache = decoding.empty(prefix, 4)
    lengths = np.repeat(_PROMPT_VALID.sum(1), 2)
    for t in range(4):
      cache = decoding.grown(cache, max(t + 1, room))
      logits, cache = decoding.step(
        model,
        weights,
        prefix,
        cache,
        responses[:, t],
        jnp.asarray(lengths + t),
        jnp.int32(t),
      )
      found.append(logits)
    return jnp.stack(found, axis=1)

  @parameterized.named_parameters(
    *_VARIANTS,
    ('capped', {'softcap': 2.0}),
    ('bfloat16', {'dtype': 'bfloat16'}),
  )
  def test_equals_the_teacher_forced_pass(self, overrides):
    model = _model(**overrides)
    params, tokens = _params(model), _tokens((4, 7))
    tokens[1::2, :3] = tokens[::2, :3]
    valid = np.concatenate(
      [np.repeat(_PROMPT_VALID, 2, axis=0), np.ones((4, 4), bool)], axis=1
    )
    forced = _run(model, params, tokens, valid).logits[:, 2:]
    decode = jax.jit(self._decode, static_argnums=(0, 3))
    tight, roomy = (decode(model, params, tokens, room) for room in (0, 9))
    # The sums over more slots, which are not seen, may be made in other orders.
    is_wide = model.dtype == 'float32'
    np.testing.assert_allclose(tight, roomy, atol=1e-5 if is_wide else 0.1)
    np.testing.assert_allclose(
      tight, forced, atol=1e-5 if is_wide else 0.05 * np.abs(forced).max()
    )

  def test_what_is_not_seen_does_not_matter(self):
    model = _model()
    params = _params(model)
    shape = (model.num_kv_heads, 3, model.head_dim)
    seen = jnp.asarray(_PROMPT_VALID)[:, None, :, None]
    early = (jnp.arange(3) < 1)[:, None]

    def run(hidden):
      shared = (jnp.where(seen, jnp.ones((2, *shape)), hidden),) * 2
      own = (jnp.where(early, jnp.ones((4, *shape)), hidden),) * 2
      logits, _ = decoding.step(
        model,
        decoding.weights(model, params),
        decoding.Prefix(shared, shared, jnp.asarray(_PROMPT_VALID)),
        decoding.Cache(own, own),
        _tokens(4),
        jnp.full(4, 4),
        jnp.int32(1),
      )
      return logits

    chex.assert_trees_all_equal(run(0.0), run(1e3))

  def test_weights_are_of_the_dtype_and_norms_are_not(self):
    model = _model(dtype='bfloat16')
    weights = decoding.weights(model, _params(model))
    self.assertLen(weights.layers, 2)
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
      is_scale = path[-1].key == 'scale'
      self.assertEqual(leaf.dtype, jnp.float32 if is_scale else jnp.bfloat16)


# Tokens a, b = 0, 1 embed as (1, 0), (0, 1), which the norm makes sqrt(2) long.
# Queries are (x, x), keys (x, 100 y), so q_a k_a = 2, q_a k_b = 200, q_b k = 0.
_A, _B = 0, 1


class MaxLogitTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.model = _model(
      vocab_size=2,
      num_layers=1,
      embed_dim=2,
      num_heads=1,
      num_kv_heads=1,
      head_dim=2,
      norm_eps=1e-9,
    )
    self.params = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape), _shapes(self.model)
    )
    self.params['embed'] = jnp.eye(2)
    self.params['layers']['attention_norm']['scale'] += 1
    block = self.params['layers']['attention']
    kernel = lambda *rows: {'kernel': jnp.array(rows).reshape(1, 2, 1, 2)}
    block['query'] = kernel([1.0, 1.0], [0.0, 0.0])
    block['key'] = kernel([1.0, 0.0], [0.0, 100.0])

  def _apply(self, tokens, valid):
    # All at position 0: nothing is rotated.
    return _apply(
      self.model,
      self.params,
      jnp.array([tokens]),
      jnp.array([valid]) == 1,
      jnp.zeros((1, len(tokens)), jnp.int32),
    )

  def _assert_largest(self, output, product):
    np.testing.assert_allclose(
      output.max_logits, [[product / 2**0.5]], rtol=1e-6
    )

  @parameterized.named_parameters(
    ('of_a_key_before', (_B, _A), (1, 1), 200),
    ('not_of_a_key_after', (_A, _B), (1, 1), 2),
    ('not_of_a_key_on_left_padding', (_B, _A), (0, 1), 2),
    ('not_of_a_query_on_right_padding', (_B, _A), (1, 0), 0),
    ('none_without_a_token', (_B, _A), (0, 0), -np.inf),
  )
  def test_visible_logits_of_valid_queries(self, tokens, valid, product):
    self._assert_largest(self._apply(tokens, valid), product)


def _apply_part(module, params, x):
  return module.apply({'params': params}, x)


class PartsTest(absltest.TestCase):
  def test_rms_norm_by_hand(self):
    # The mean square of 1 and 7 is 25; with eps = 11 the root is 6.
    norm = layers.RMSNorm(eps=11.0)
    y = _apply_part(
      norm, {'scale': jnp.array([6.0, 12.0])}, jnp.array([1.0, 7.0])
    )
    np.testing.assert_allclose(y, [1, 14], rtol=1e-6)

  def test_swiglu_by_hand(self):
    # silu(log 3) = log 3 sigmoid(log 3) = 3/4 log 3, times 4 up, times 5 down.
    kernel = lambda value: {'kernel': jnp.full((1, 1), value)}
    params = {
      'gate': kernel(jnp.log(3.0)),
      'up': kernel(4.0),
      'down': kernel(5.0),
    }
    y = _apply_part(layers.SwiGLU(1), params, jnp.ones(1))
    np.testing.assert_allclose(y, [15 * np.log(3)], rtol=1e-6)


class AttentionWeightsTest(parameterized.TestCase):
  def _paths(self, **overrides):
    block = transformer.attention_weights(_shapes(_model(**overrides)))
    sides = block.query, block.key, block.query_gain, block.key_gain
    return [{'/'.join(weight.path[2:]) for weight in side} for side in sides]

  def test_paths(self):
    kernels = [{'query/kernel'}, {'key/kernel'}]
    biases = [{'query/bias'}, {'key/bias'}]
    gains = [{'query_norm/scale'}, {'key_norm/scale'}]
    self.assertEqual(self._paths(), kernels + [set(), set()])
    self.assertEqual(self._paths(qk_norm=True), kernels + gains)
    self.assertEqual(
      self._paths(qk_bias=True),
      [a | b for a, b in zip(kernels, biases)] + [set(), set()],
    )

  # Of one layer, whose inputs the clip doesn't change.
  @parameterized.named_parameters(*_VARIANTS)
  def test_clip_brings_the_largest_logits_to_tau(self, overrides):
    model = _model(num_layers=1, **overrides)
    params = _params(model)
    before = _run(model, params, _tokens((4, 7)), _VALID).max_logits
    tau = float(jnp.median(before))
    tx = muon_clip.qk_clip(
      tau,
      attention=transformer.attention_weights,
      mode='gain' if model.qk_norm else 'weights',
    )
    updates, _ = jax.jit(tx.update)(
      jax.tree.map(jnp.zeros_like, params),
      tx.init(params),
      params,
      max_logits=before,
    )
    clipped = optax.apply_updates(params, updates)
    after = _run(model, clipped, _tokens((4, 7)), _VALID).max_logits
    expected = np.minimum(before, tau)
    if model.qk_norm:
      # One gamma for all heads, whose gains are the same.
      expected = before * tau / before.max()
    np.testing.assert_allclose(after, expected, rtol=2e-6)
    block = clipped['layers'].pop('attention')
    old = params['layers'].pop('attention')
    chex.assert_trees_all_equal(clipped, params)
    for name in ('value', 'out'):
      chex.assert_trees_all_equal(block[name], old[name])


class ParametersTest(parameterized.TestCase):
  def _shapes(self, **overrides):
    model = _model(num_layers=3, **overrides)
    flat = traverse_util.flatten_dict(_shapes(model), sep='/')
    return {name: leaf.shape for name, leaf in flat.items()}

  # N_l = 3, V = 11, D = 8, H = 4, K = 2, Dh = 6, F = 12.
  def test_shapes(self):
    self.assertEqual(
      self._shapes(qk_bias=True, qk_norm=True, tie_embeddings=False),
      {
        'embed': (11, 8),
        'head': (8, 11),
        'norm/scale': (8,),
        'layers/attention_norm/scale': (3, 8),
        'layers/mlp_norm/scale': (3, 8),
        'layers/attention/query/kernel': (3, 8, 4, 6),
        'layers/attention/query/bias': (3, 4, 6),
        'layers/attention/key/kernel': (3, 8, 2, 6),
        'layers/attention/key/bias': (3, 2, 6),
        'layers/attention/value/kernel': (3, 8, 2, 6),
        'layers/attention/query_norm/scale': (3, 6),
        'layers/attention/key_norm/scale': (3, 6),
        'layers/attention/out/kernel': (3, 4, 6, 8),
        'layers/mlp/gate/kernel': (3, 8, 12),
        'layers/mlp/up/kernel': (3, 8, 12),
        'layers/mlp/down/kernel': (3, 12, 8),
      },
    )

  def test_switches_add_parameters(self):
    plain = self._shapes()
    added = lambda **switch: set(self._shapes(**switch)) - set(plain)
    self.assertEqual(added(tie_embeddings=False), {'head'})
    self.assertEqual(
      added(qk_bias=True),
      {'layers/attention/query/bias', 'layers/attention/key/bias'},
    )
    self.assertEqual(
      added(qk_norm=True),
      {'layers/attention/query_norm/scale', 'layers/attention/key_norm/scale'},
    )

  # A joint kernel is one matrix a layer, else one a head: [N_l, D, H, Dh].
  @parameterized.named_parameters(
    (
      'joint',
      'joint',
      {
        'attention/query': (8, 24),
        'attention/key': (8, 12),
        'attention/value': (8, 12),
        'attention/out': (24, 8),
      },
    ),
    (
      'per_head',
      'per_head',
      {
        'attention/query': (8, 6),
        'attention/key': (8, 6),
        'attention/value': (8, 6),
        'attention/out': (6, 8),
      },
    ),
  )
  def test_muon_takes_the_hidden_matrices_alone(self, heads, attention):
    model = _model(qk_bias=True, qk_norm=True, tie_embeddings=False)
    params = _shapes(model)
    numbers = transformer.muon_dimension_numbers(params, heads)
    specs = traverse_util.flatten_dict(numbers, sep='/')
    shapes = traverse_util.flatten_dict(params, sep='/')
    self.assertEqual(specs.keys(), shapes.keys())
    matrices = {}
    for name, spec in specs.items():
      if spec is not None:
        size = lambda axes, name=name: int(
          np.prod([shapes[name].shape[axis] for axis in axes])
        )
        # The layers' axis is in neither: one matrix each.
        self.assertNotIn(0, (*spec.reduction_axis, *spec.output_axis))
        matrices[name.removeprefix('layers/').removesuffix('/kernel')] = (
          size(spec.reduction_axis),
          size(spec.output_axis),
        )
    self.assertEqual(
      matrices,
      {
        'mlp/gate': (8, 12),
        'mlp/up': (8, 12),
        'mlp/down': (12, 8),
      }
      | attention,
    )

  def test_unknown_heads_of_muon(self):
    with self.assertRaisesRegex(ValueError, "heads='each': must be joint or"):
      transformer.muon_dimension_numbers(_shapes(_model()), 'each')

  def test_initialisation_is_small_and_its_own_in_each_layer(self):
    params = jax.jit(transformer.init, static_argnums=0)(
      _model(embed_dim=32), jax.random.key(0)
    )
    kernel = params['layers']['attention']['query']['kernel']
    self.assertBetween(np.std(kernel), 0.018, 0.022)
    self.assertGreater(np.abs(kernel[0] - kernel[1]).max(), 0.02)
    np.testing.assert_array_equal(params['norm']['scale'], 1)


if __name__ == '__main__':
  absltest.main()
