"""QK-clip against float64 attention, Muon against a float64 reference."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmpo_jax.optim import muon_clip

_PATH = ('layers', 'attention')
_LAYERS, _WIDTH, _HEADS, _HEAD_WIDTH = 2, 8, 4, 3
_LAYOUTS = (('multi_head', 4), ('grouped', 2), ('multi_query', 1))


def _params(kv_heads, bias=False, seed=0):
  """Stacked parameters as the model lays them out, standard normal."""
  heads, width, layers = (_HEADS, _HEAD_WIDTH), _WIDTH, _LAYERS
  shapes = {
      'embed': (5, width),
      'layers/attention/query/kernel': (layers, width, *heads),
      'layers/attention/key/kernel': (layers, width, kv_heads, _HEAD_WIDTH),
      'layers/attention/value/kernel': (layers, width, kv_heads, _HEAD_WIDTH),
      'layers/attention/out/kernel': (layers, *heads, width),
      'layers/mlp/gate/kernel': (layers, width, 20),
      'layers/norm/scale': (layers, width),
  }
  if bias:
    shapes['layers/attention/query/bias'] = (layers, *heads)
    shapes['layers/attention/key/bias'] = (layers, kv_heads, _HEAD_WIDTH)
  rng = np.random.default_rng(seed)
  leaves = {
      name: jnp.asarray(rng.normal(size=shape), jnp.float32)
      for name, shape in shapes.items()
  }
  return traverse_util.unflatten_dict(leaves, sep='/')


def _kernels(tree):
  """{'query': ..., 'gate': ...}, the leaves that Muon moves."""
  leaves = traverse_util.flatten_dict(tree)
  return {
      path[-2]: leaf for path, leaf in leaves.items() if path[-1] == 'kernel'
  }


def _attention(params):
  return params['layers']['attention']


def _logits(params, head_order='repeat'):
  """[N_l, H, S, S] float64 attention logits on fixed inputs, all visible."""
  x = np.random.default_rng(7).normal(size=(6, _WIDTH))
  block = _attention(params)
  kv_heads = block['key']['kernel'].shape[2]
  result = np.zeros((_LAYERS, _HEADS, len(x), len(x)))

  def project(name, layer, head):
    leaves = jax.tree.map(np.float64, block[name])
    bias = leaves['bias'][layer, head] if 'bias' in leaves else 0
    return x @ leaves['kernel'][layer, :, head] + bias

  for layer, head in np.ndindex(_LAYERS, _HEADS):
    read = head % kv_heads
    if head_order == 'repeat':
      read = head // (_HEADS // kv_heads)
    query, key = project('query', layer, head), project('key', layer, read)
    result[layer, head] = query @ key.T / _HEAD_WIDTH**0.5
  return result


def _largest(logits):
  return jnp.asarray(logits.max((2, 3)), jnp.float32)


def _clip(params, tau, max_logits, updates=None, **options):
  """Parameters, updates and state after one update of qk_clip alone."""
  if updates is None:
    updates = jax.tree.map(jnp.zeros_like, params)
  tx = muon_clip.qk_clip(tau, attention=_PATH, **options)
  updates, state = tx.update(
      updates, tx.init(params), params, max_logits=max_logits)
  return optax.apply_updates(params, updates), updates, state


class QKClipTest(parameterized.TestCase):

  @parameterized.product(layout=_LAYOUTS, bias=(False, True))
  def test_every_logit_of_a_head_is_multiplied_by_gamma(self, layout, bias):
    params = _params(layout[1], bias)
    before = _logits(params)
    tau = float(np.median(_largest(before)))
    after, _, state = _clip(params, tau, _largest(before))
    gamma = np.minimum(1, tau / before.max((2, 3)))
    self.assertBetween((gamma < 1).sum(), 1, gamma.size - 1)
    np.testing.assert_allclose(
        _logits(after), gamma[:, :, None, None] * before, rtol=0, atol=5e-6)
    # The largest lands on tau, neither above nor below.
    np.testing.assert_allclose(
        _logits(after).max((2, 3)),
        np.minimum(before.max((2, 3)), tau),
        rtol=6e-7)
    np.testing.assert_allclose(state.last_factor, gamma, rtol=2e-7)

  def test_tile_order(self):
    params = _params(2)
    before = _logits(params, 'tile')
    after, _, _ = _clip(params, 3., _largest(before), head_order='tile')
    np.testing.assert_allclose(
        _logits(after, 'tile').max((2, 3)),
        np.minimum(before.max((2, 3)), 3.),
        rtol=6e-7)

  # tau = 100 and query heads 0, 1 | 2, 3 share a key head. The larger gamma of
  # a pair goes into the key as its root: (1/4, 1/16) is 1/2 on the key, so 1/2
  # and 1/8 on the queries; (1, 1/4) is 1 on the key, so 1 and 1/4.
  @parameterized.named_parameters(
      ('both', (400., 1600.), (1 / 2, 1 / 8), 1 / 2),
      ('one', (100., 400.), (1., 1 / 4), 1.),
      ('none', (-5., -np.inf), (1., 1.), 1.),
  )
  def test_factors_of_a_shared_key(self, pair, query, key):
    params = jax.tree.map(jnp.ones_like, _params(2, bias=True))
    max_logits = jnp.full((_LAYERS, _HEADS), 1.).at[1, 2:].set(jnp.array(pair))
    after, _, _ = _clip(params, 100., max_logits)
    expected = {
        'query': np.array([[1, 1, 1, 1], [1, 1, *query]]),
        'key': np.array([[1, 1], [1, key]])
    }
    for name, factor in expected.items():
      leaves = _attention(after)[name]
      np.testing.assert_array_equal(
          leaves['kernel'],
          np.broadcast_to(factor[:, None, :, None], leaves['kernel'].shape))
      np.testing.assert_array_equal(
          leaves['bias'],
          np.broadcast_to(factor[:, :, None], leaves['bias'].shape))

  def test_acts_on_params_plus_updates(self):
    params, updates = _params(4), _params(4, seed=1)
    max_logits = jnp.full((_LAYERS, _HEADS), 50.).at[0, 1].set(400.)
    after, _, _ = _clip(params, 100., max_logits, updates)
    # One key per query: both get the root of gamma = 1/4.
    for name in ('query', 'key'):
      old, new = (_attention(tree)[name]['kernel'] for tree in (params, after))
      moved = np.float64(old) + np.float64(_attention(updates)[name]['kernel'])
      np.testing.assert_allclose(new[0, :, 1], moved[0, :, 1] / 2, atol=5e-7)

  def test_what_is_not_clipped_keeps_its_bits(self):
    params, base_updates = _params(2, bias=True), _params(2, True, seed=1)
    max_logits = jnp.full((_LAYERS, _HEADS), 50.).at[0, 1].set(400.)
    _, updates, _ = _clip(params, 100., max_logits, base_updates)
    for leaf in ('kernel', 'bias'):
      old, new = (
          _attention(tree)['query'][leaf] for tree in (base_updates, updates))
      np.testing.assert_array_equal(
          np.all(old == new, axis=(1, 3) if leaf == 'kernel' else 2),
          [[True, False, True, True], [True] * 4])
    # The sibling of head 1 stays below tau, so their key must stay.
    for tree in (base_updates, updates):
      _attention(tree).pop('query')
    chex.assert_trees_all_equal(updates, base_updates)

  @parameterized.named_parameters(('at_tau', 100.), ('below', 99.),
                                  ('negative', -1e6), ('blind', -np.inf),
                                  ('nan', np.nan), ('inf', np.inf))
  def test_is_the_identity(self, value):
    params, base_updates = _params(2, bias=True), _params(2, True, seed=1)
    max_logits = jnp.full((_LAYERS, _HEADS), value)
    _, updates, state = _clip(params, 100., max_logits, base_updates)
    chex.assert_trees_all_equal(updates, base_updates)
    np.testing.assert_array_equal(state.last_factor, 1)
    self.assertFalse(np.any(state.ever_clipped))

  def test_stacked_is_a_loop_over_layers(self):
    params, updates = _params(2, bias=True), _params(2, True, seed=1)
    max_logits = jnp.array([[400., 9., 900., 250.], [-3., 101., 7., 130.]])
    after, _, _ = _clip(params, 100., max_logits, updates)
    for i in range(_LAYERS):
      of_layer = lambda tree, i=i: {
          'layers': jax.tree.map(lambda x: x[i:i + 1], tree['layers'])
      }
      one, _, _ = _clip(
          of_layer(params), 100., max_logits[i:i + 1], of_layer(updates))
      chex.assert_trees_all_equal(one, of_layer(after))

  def test_is_idempotent(self):
    params = _params(2, bias=True)
    once, _, _ = _clip(params, 2., _largest(_logits(params)))
    twice, _, state = _clip(once, 2., _largest(_logits(once)))
    np.testing.assert_allclose(state.last_factor, 1, atol=1e-6)
    chex.assert_trees_all_close(twice, once, rtol=1e-6)

  def test_nonfinite_is_counted_and_spares_the_other_heads(self):
    params = _params(2)
    max_logits = jnp.array([[np.nan, 400., np.inf, 400.], [1.] * 4])
    after, _, state = _clip(params, 100., max_logits)
    chex.assert_tree_all_finite(after)
    np.testing.assert_array_equal(state.last_factor,
                                  [[1, 1 / 4, 1, 1 / 4], [1] * 4])
    self.assertEqual(state.nonfinite_count, 1)
    np.testing.assert_array_equal(state.max_ever,
                                  [[-np.inf, 400, -np.inf, 400], [1] * 4])

  def test_quotient_that_underflows(self):
    # 1e-8 / 3e38 is 0 in float32; both weights must still shrink.
    max_logits = jnp.full((_LAYERS, _HEADS), 3e38)
    after, _, _ = _clip(_params(2), 1e-8, max_logits)
    for name in ('query', 'key'):
      np.testing.assert_allclose(
          _attention(after)[name]['kernel'], 0, atol=1e-6)

  def test_state_is_a_history(self):
    params = _params(2)
    tx = muon_clip.qk_clip(100., attention=_PATH)
    first = state = tx.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    for value in (200., 400., 50.):
      max_logits = jnp.full((_LAYERS, _HEADS), 1.).at[1, 3].set(value)
      _, state = tx.update(zeros, state, params, max_logits=max_logits)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, state)
    self.assertEqual(state.update_count, 3)
    self.assertEqual(state.nonfinite_count, 0)
    one_head = np.zeros((_LAYERS, _HEADS), int)
    one_head[1, 3] = 1
    np.testing.assert_array_equal(state.clip_count, 2 * one_head)
    np.testing.assert_array_equal(state.ever_clipped, one_head == 1)
    np.testing.assert_array_equal(state.max_ever, 1 + 399 * one_head)
    np.testing.assert_array_equal(state.last_max, 1 + 49 * one_head)
    np.testing.assert_array_equal(state.last_factor, 1)

  def test_bfloat16_parameters(self):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params(4))
    base_updates = _params(4, seed=1)
    max_logits = jnp.full((_LAYERS, _HEADS), 700.)
    after, _, _ = _clip(params, 100., max_logits, base_updates)
    old, update, new = (
        _attention(tree)['query']['kernel']
        for tree in (params, base_updates, after))
    self.assertEqual(new.dtype, jnp.bfloat16)
    ideal = (1 / 7)**0.5 * (old.astype(jnp.float32) + update)
    # Up to ties that float32 decides: the difference is not rounded before.
    self.assertGreater(np.mean(new == ideal.astype(jnp.bfloat16)), 0.99)

  def test_one_program_for_every_tau(self):
    params = _params(2)
    logits = _logits(params)
    traces = []

    @jax.jit
    def run(tau):
      traces.append(None)
      return _clip(params, tau, _largest(logits))[0]

    for tau in (1., 2., 3.):
      np.testing.assert_allclose(
          _logits(run(jnp.float32(tau))).max((2, 3)),
          np.minimum(logits.max((2, 3)), tau),
          rtol=6e-7)
    self.assertLen(traces, 1)

  def test_vmap_over_runs(self):
    runs = [_params(2, bias=True, seed=seed) for seed in range(3)]
    tau = jnp.array([1., 2., 100.])
    max_logits = jnp.stack([_largest(_logits(run)) for run in runs])
    batched = jax.vmap(_clip)(jax.tree.map(lambda *x: jnp.stack(x), *runs), tau,
                              max_logits)
    for i, run in enumerate(runs):
      chex.assert_trees_all_close(
          jax.tree.map(lambda x, i=i: x[i], batched),
          _clip(run, tau[i], max_logits[i]),
          rtol=1e-6)


class QKClipErrorsTest(parameterized.TestCase):

  def _update(self, params, path=_PATH, shape=(_LAYERS, _HEADS)):
    tx = muon_clip.qk_clip(1., attention=path)
    state = tx.init(params)
    jax.eval_shape(lambda x: tx.update(params, state, params, max_logits=x)[0],
                   jax.ShapeDtypeStruct(shape, jnp.float32))

  def test_max_logits_are_required(self):
    params = _params(2)
    tx = muon_clip.qk_clip(1., attention=_PATH)
    with self.assertRaisesRegex(TypeError, 'max_logits'):
      tx.update(params, tx.init(params), params)

  def test_params_are_required(self):
    params = _params(2)
    tx = muon_clip.qk_clip(1., attention=_PATH)
    with self.assertRaisesRegex(ValueError, 'needs params'):
      tx.update(params, tx.init(params), max_logits=jnp.ones((_LAYERS, _HEADS)))

  @parameterized.named_parameters(
      ('scalar', ()), ('one_layer', (_HEADS,)), ('swapped', (_HEADS, _LAYERS)),
      ('key_heads', (_LAYERS, 2)), ('extra_axis', (1, _LAYERS, _HEADS)))
  def test_shape_of_max_logits(self, shape):
    with self.assertRaisesRegex(ValueError, r'must be \[N_l, H\] = \(2, 4\)'):
      self._update(_params(2), shape=shape)

  @parameterized.parameters('query_norm', 'key_norm')
  def test_qk_norm_is_refused(self, name):
    params = _params(2)
    _attention(params)[name] = {'scale': jnp.ones((_LAYERS, _HEAD_WIDTH))}
    with self.assertRaisesRegex(ValueError, 'undoes any rescaling'):
      self._update(params)

  @parameterized.parameters(('layers', 'attn'), ('attention',), ('layers',))
  def test_missing_block(self, *path):
    with self.assertRaisesRegex(ValueError, 'no .* among'):
      self._update(_params(2), path)

  def test_parameters_that_it_would_not_rescale(self):
    params = _params(2)
    _attention(params)['query']['lora'] = jnp.ones((_LAYERS, _WIDTH, 1, 1))
    with self.assertRaisesRegex(ValueError, 'nothing else'):
      self._update(params)

  def test_layers_that_are_not_stacked(self):
    params = jax.tree.map(lambda x: x[0], _params(2))
    with self.assertRaisesRegex(ValueError, 'N_l'):
      self._update(params)

  def test_heads_that_do_not_divide(self):
    with self.assertRaisesRegex(ValueError, 'must divide 4'):
      self._update(_params(3))

  def test_arguments(self):
    with self.assertRaisesRegex(ValueError, 'tau'):
      muon_clip.qk_clip(0., attention=_PATH)
    with self.assertRaisesRegex(ValueError, 'head_order'):
      muon_clip.qk_clip(1., attention=_PATH, head_order='transposed')
    with self.assertRaisesRegex(ValueError, 'off or weights'):
      muon_clip.followed_by_clip(
          optax.identity(), 'on', tau=1., attention=_PATH)


# Matrices n x m of each layer, and how their kernel's axes form them.
_MATRICES = {
    'query': (_WIDTH, _HEADS * _HEAD_WIDTH),
    'key': (_WIDTH, 2 * _HEAD_WIDTH),
    'value': (_WIDTH, 2 * _HEAD_WIDTH),
    'out': (_HEADS * _HEAD_WIDTH, _WIDTH),
    'gate': (_WIDTH, 20),
}


def _dimension_numbers(params):
  """As the model's: hidden kernels one matrix a layer, None for the rest."""
  spec = optax.contrib.MuonDimensionNumbers
  axes = {'out': spec((1, 2), (3,)), 'gate': spec((1,), (2,))}

  def of_leaf(path, _):
    names = [entry.key for entry in path]
    if names[-1] != 'kernel':
      return None
    return axes.get(names[-2], spec((1,), (2, 3)))

  return jax.tree_util.tree_map_with_path(of_leaf, params)


def _muon(hparams, mode, dimension_numbers=_dimension_numbers):
  return muon_clip.muon_clip(
      **hparams,
      adam_b1=0.9,
      adam_b2=0.95,
      dimension_numbers=dimension_numbers,
      attention=_PATH,
      qk_clip=mode)


_HPARAMS = {
    'learning_rate': 0.01,
    'adam_learning_rate': 0.003,
    'weight_decay': 0.1,
    'momentum': 0.9,
    'tau': 100.
}
_TRACES = []


@jax.jit
def _steps(hparams, params, grads, max_logits):
  """Both modes over stacked gradients: (all updates, last state) of each."""
  _TRACES.append(None)

  def run(mode):
    tx = _muon(hparams, mode)

    def body(state, grad):
      updates, state = tx.update(grad, state, params, max_logits=max_logits)
      return state, updates

    state, updates = jax.lax.scan(body, tx.init(params), grads)
    return updates, state

  return run('off'), run('weights')


def _newton_schulz(matrix):
  """Five quintic steps from X / |X|, float64."""
  x = matrix / max(np.linalg.norm(matrix), 1e-30)
  for _ in range(5):
    gram = x @ x.T
    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
  return x


def _muon_reference(grads, kernel, shape):
  """[steps, ...] updates of one stacked kernel, heavy ball, float64."""
  momentum = np.zeros((_LAYERS, *shape))
  updates = []
  for grad in np.float64(grads):
    momentum = _HPARAMS['momentum'] * momentum + grad.reshape(momentum.shape)
    direction = np.stack([_newton_schulz(layer) for layer in momentum])
    scaled = 0.2 * max(shape)**0.5 * direction.reshape(kernel.shape)
    updates.append(-_HPARAMS['learning_rate'] *
                   (scaled + _HPARAMS['weight_decay'] * np.float64(kernel)))
  return np.stack(updates)


def _adam_reference(grads):
  """[steps, ...] updates of Adam without weight decay, float64."""
  first, second, updates = 0, 0, []
  for step, grad in enumerate(np.float64(grads), 1):
    first, second = .9 * first + .1 * grad, .95 * second + .05 * grad**2
    root = np.sqrt(second / (1 - .95**step)) + 1e-8
    updates.append(-_HPARAMS['adam_learning_rate'] * first / (1 - .9**step) /
                   root)
  return np.stack(updates)


class MuonClipTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.params = _params(2)
    steps = [_params(2, seed=seed) for seed in range(1, 6)]
    self.grads = jax.tree.map(lambda *x: jnp.stack(x), *steps)
    self.hparams = {k: jnp.float32(v) for k, v in _HPARAMS.items()}
    self.max_logits = jnp.full((_LAYERS, _HEADS), 400.).at[0].set(1.)
    self.muon, self.clipped = _steps(self.hparams, self.params, self.grads,
                                     self.max_logits)

  def test_hidden_matrices_follow_the_reference(self):
    updates, grads = _kernels(self.muon[0]), _kernels(self.grads)
    for name, kernel in _kernels(self.params).items():
      expected = _muon_reference(grads[name], kernel, _MATRICES[name])
      # Of an update whose entries are about 0.2 * 0.01.
      np.testing.assert_allclose(
          updates[name], expected, rtol=0, atol=2e-8, err_msg=name)

  def test_all_else_follows_adam(self):
    for of in (lambda t: t['embed'], lambda t: t['layers']['norm']['scale']):
      np.testing.assert_allclose(
          of(self.muon[0]), _adam_reference(of(self.grads)), rtol=2e-5)

  def test_root_mean_square(self):
    hparams = self.hparams | {'weight_decay': jnp.float32(0)}
    (updates, _), _ = _steps(hparams, self.params, self.grads, self.max_logits)
    for name, update in _kernels(updates).items():
      rms = np.sqrt(
          np.mean(np.square(update), axis=tuple(range(1, update.ndim))))
      # Newton-Schulz takes singular values into 0.68 .. 1.21.
      self.assertBetween(rms.min(), 0.2 * 0.68 * 0.01, rms.max(), name)
      self.assertLess(rms.max(), 0.2 * 1.21 * 0.01, name)

  def test_weight_decay_alone(self):
    zeros = jax.tree.map(jnp.zeros_like, self.grads)
    (updates, _), _ = _steps(self.hparams, self.params, zeros, self.max_logits)
    for name, kernel in _kernels(self.params).items():
      np.testing.assert_allclose(
          _kernels(updates)[name][0], -0.01 * 0.1 * kernel, rtol=1e-6)
    np.testing.assert_array_equal(updates['embed'], 0)
    np.testing.assert_array_equal(updates['layers']['norm']['scale'], 0)

  def test_clip_comes_last(self):
    # gamma = 1/4 in the second layer: W <- (W + u) / 2 for query and key.
    muon, clipped = _kernels(self.muon[0]), _kernels(self.clipped[0])
    for name, kernel in _kernels(self.params).items():
      expected = kernel + muon[name]
      if name in ('query', 'key'):
        expected = expected.at[:, 1].divide(2)
      np.testing.assert_allclose(
          kernel + clipped[name], expected, atol=5e-7, err_msg=name)
      np.testing.assert_array_equal(clipped[name][:, 0], muon[name][:, 0])

  def test_one_program_for_all_hyperparameters(self):
    for name in _HPARAMS:
      hparams = self.hparams | {name: self.hparams[name] / 2}
      _steps(hparams, self.params, self.grads, self.max_logits)
    self.assertLen(_TRACES, 1)

  def test_constants_and_a_pytree_of_dimension_numbers(self):
    tx = _muon(_HPARAMS, 'weights', _dimension_numbers(self.params))
    grad = jax.tree.map(lambda x: x[0], self.grads)

    @jax.jit
    def run(params):
      state = tx.init(params)
      return tx.update(grad, state, params, max_logits=self.max_logits)[0]

    chex.assert_trees_all_close(
        run(self.params),
        jax.tree.map(lambda x: x[0], self.clipped[0]),
        rtol=1e-5,
        atol=1e-8)

  def test_max_logits_are_required_to_clip_only(self):
    run = lambda tx, **extra: jax.eval_shape(
        lambda p: tx.update(p, tx.init(p), p, **extra), self.params)
    run(_muon(_HPARAMS, 'off'))
    with self.assertRaisesRegex(TypeError, 'max_logits'):
      run(_muon(_HPARAMS, 'weights'))

  def test_unknown_mode(self):
    with self.assertRaisesRegex(ValueError, 'off or weights'):
      _muon(_HPARAMS, 'on')


if __name__ == '__main__':
  absltest.main()
