"""A contract over every optimizer of the configuration, and the norm's clip."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
from flax import traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from hmpo_jax import config as config_lib
from hmpo_jax.config import traced
from hmpo_jax.optim import factory
from hmpo_jax.optim import muon_clip
from hmpo_jax.optim import qk_weights

_CHOICES = tuple(
  (f'{name}_{mode}', name, mode)
  for name in factory.OPTIMIZERS
  for mode in ('off', 'weights')
)
_CALM = jnp.zeros((2, 4))  # [N_l, H] logits that need no clip
_HIGH = jnp.full((2, 4), 400.0)  # four times tau


def _params(seed=0):
  shapes = {
    'embed': (5, 6),
    'layers/attention/query/kernel': (2, 6, 4, 2),
    'layers/attention/query/bias': (2, 4, 2),
    'layers/attention/key/kernel': (2, 6, 2, 2),
    'layers/attention/key/bias': (2, 2, 2),
  }
  normal = np.random.default_rng(seed).normal
  return traverse_util.unflatten_dict(
    {name: jnp.float32(normal(size=shape)) for name, shape in shapes.items()},
    sep='/',
  )


def _dimension_numbers(params):
  spec = optax.contrib.MuonDimensionNumbers((1,), (2, 3))
  return jax.tree.map(lambda leaf: spec if leaf.ndim == 4 else None, params)


def _attention(params):
  path = ('layers', 'attention')
  weights = lambda name: tuple(
    qk_weights.Weight((*path, name, leaf), -2)
    for leaf in params['layers']['attention'][name]
  )
  return qk_weights.Attention(
    4, 2, weights('query'), weights('key'), num_layers=2
  )


def _optim(name, mode):
  optim = config_lib.default_config().optim
  optim.name, optim.qk_clip = name, mode
  return ml_collections.FrozenConfigDict(optim)


def _hparams(**changes):
  values = traced.hparams(config_lib.default_config())
  return values._replace(**{k: jnp.float32(v) for k, v in changes.items()})


def _make(name, mode, hparams):
  return factory.make(
    _optim(name, mode),
    hparams,
    dimension_numbers=_dimension_numbers,
    attention=_attention,
  )


_TRACES = []


def _update(name, mode, hparams, grads, state, params, max_logits):
  _TRACES.append(None)
  return _make(name, mode, hparams).update(
    grads, state, params, max_logits=max_logits
  )


_jitted = jax.jit(_update, static_argnums=(0, 1))


def _first(name, mode, hparams, grads, params, max_logits=_CALM):
  """Updates of the first step."""
  state = _make(name, mode, hparams).init(params)
  return _jitted(name, mode, hparams, grads, state, params, max_logits)[0]


def _second(name, mode, hparams):
  """Updates of the second step, whose gradients differ from the first."""
  params = _params()
  state = _make(name, mode, hparams).init(params)
  for seed in (1, 2):
    updates, state = _jitted(
      name, mode, hparams, _params(seed), state, params, _HIGH
    )
  return updates


class ContractTest(parameterized.TestCase):
  @parameterized.named_parameters(*_CHOICES)
  def test_converges(self, name, mode):
    params, target = _params(), _params(seed=1)
    hparams = _hparams(learning_rate=0.3, adam_learning_rate=0.1, momentum=0.5)
    distance = lambda p: optax.tree.norm(optax.tree.sub(p, target))
    state, start = _make(name, mode, hparams).init(params), distance(params)
    for _ in range(40):
      grads = optax.tree.sub(params, target)
      updates, state = _jitted(name, mode, hparams, grads, state, params, _CALM)
      params = optax.apply_updates(params, updates)
    self.assertLess(distance(params), start / 4)

  @parameterized.named_parameters(*_CHOICES)
  def test_structure_of_state_and_updates(self, name, mode):
    params, seen = _params(), []
    for value in (0.0, 0.5):
      hparams = _hparams(weight_decay=value, momentum=value)
      state = _make(name, mode, hparams).init(params)
      updates, after = _jitted(
        name, mode, hparams, params, state, params, _HIGH
      )
      chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
      chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
      seen.append(state)
    chex.assert_trees_all_equal(*seen)

  @parameterized.named_parameters(*_CHOICES)
  def test_one_program_in_which_every_hyperparameter_acts(self, name, mode):
    fields = {
      'learning_rate',
      'weight_decay',
      'max_grad_norm',
      'qk_learning_rate_scale',
    }
    if name == 'muon_clip':
      fields |= {'adam_learning_rate', 'adam_weight_decay', 'momentum'}
    if mode == 'weights':
      fields |= {'tau', 'qk_alpha'}
    start = _hparams(
      weight_decay=0.1, adam_weight_decay=0.1, max_grad_norm=1.0, tau=100.0
    )
    expected = _second(name, mode, start)
    count = len(_TRACES)
    for field in start._fields:
      halve = lambda value: (value / 2).astype(value.dtype)
      halved = start._replace(
        **{field: jax.tree.map(halve, getattr(start, field))}
      )
      equal = jax.tree.map(
        np.array_equal, _second(name, mode, halved), expected
      )
      self.assertEqual(all(jax.tree.leaves(equal)), field not in fields, field)
    self.assertLen(_TRACES, count)

  @parameterized.named_parameters(*_CHOICES)
  def test_vmap_over_runs(self, name, mode):
    hparams = [_hparams(learning_rate=rate, tau=rate) for rate in (0.1, 0.2)]
    stack = lambda *runs: jax.tree.map(lambda *x: jnp.stack(x), *runs)

    def run(hparams, grads, params):
      state = _make(name, mode, hparams).init(params)
      return _update(name, mode, hparams, grads, state, params, _HIGH)

    grads, params = [_params(1), _params(2)], [_params(3), _params(4)]
    batched = jax.jit(jax.vmap(run))(
      stack(*hparams), stack(*grads), stack(*params)
    )
    for i in range(2):
      chex.assert_trees_all_close(
        jax.tree.map(lambda x, i=i: x[i], batched[0]),
        _first(name, mode, hparams[i], grads[i], params[i], _HIGH),
        rtol=1e-4,
        atol=1e-6,
      )

  @parameterized.named_parameters(*_CHOICES)
  def test_decays_hidden_matrices_only(self, name, mode):
    params = _params()
    zeros = jax.tree.map(jnp.zeros_like, params)
    hparams = _hparams(learning_rate=0.5, weight_decay=0.1)
    updates = _first(name, mode, hparams, zeros, params)
    hidden = jax.tree.map(lambda p: -0.05 * p if p.ndim == 4 else 0 * p, params)
    chex.assert_trees_all_close(updates, hidden, rtol=1e-6)

  @parameterized.parameters(*factory.OPTIMIZERS)
  def test_scale_is_of_query_and_key_kernels_alone(self, name):
    params, grads = _params(), _params(1)
    of = lambda **changes: _first(
      name, 'off', _hparams(weight_decay=0.1, **changes), grads, params
    )
    is_kernel = lambda path: path[-1].key == 'kernel'
    chex.assert_trees_all_equal(
      of(qk_learning_rate_scale=4.0),
      jax.tree_util.tree_map_with_path(
        lambda path, u: 4 * u if is_kernel(path) else u, of()
      ),
    )

  def test_adamw_has_the_bits_and_the_state_of_optax(self):
    params, hparams = _params(), _hparams(weight_decay=0.1)
    optim = _optim('adamw', 'off')
    peer = optax.chain(
      optax.adamw(
        hparams.learning_rate,
        b1=optim.adam_b1,
        b2=optim.adam_b2,
        weight_decay=hparams.weight_decay,
        mask=lambda tree: jax.tree.map(lambda p: p.ndim == 4, tree),
      )
    )
    expected = jax.jit(peer.update)(_params(1), peer.init(params), params)
    state = _make('adamw', 'off', hparams).init(params)
    updates, after = _jitted(
      'adamw', 'off', hparams, _params(1), state, params, _CALM
    )
    chex.assert_trees_all_equal(
      (updates, after[1]), (expected[0], expected[1][0])
    )

  @parameterized.parameters(*factory.OPTIMIZERS)
  def test_clip_comes_last(self, name):
    params, grads = _params(), _params(1)
    hparams = _hparams(learning_rate=0.1, weight_decay=0.1, tau=100.0)
    plain = _first(name, 'off', hparams, grads, params, _HIGH)
    clipped = _first(name, 'weights', hparams, grads, params, _HIGH)
    after = optax.apply_updates(params, plain)
    # gamma is 1/4 for all heads, so both factors are its root.
    after['layers'] = jax.tree.map(lambda p: p / 2, after['layers'])
    chex.assert_trees_all_close(
      optax.apply_updates(params, clipped), after, atol=5e-7
    )

  @parameterized.parameters(*factory.OPTIMIZERS)
  def test_clip_without_need_changes_no_bit(self, name):
    args = _hparams(weight_decay=0.1), _params(1), _params()
    chex.assert_trees_all_equal(
      _first(name, 'weights', *args), _first(name, 'off', *args)
    )

  def test_adamw_by_hand(self):
    # First step: m / sqrt(v) is the sign of the gradient.
    params, grads = _params(), _params(1)
    updates = _first(
      'adamw',
      'off',
      _hparams(learning_rate=0.5, adam_learning_rate=7.0),
      grads,
      params,
    )
    expected = jax.tree.map(lambda g: -0.5 * jnp.sign(g), grads)
    chex.assert_trees_all_close(updates, expected, rtol=1e-5)

  @parameterized.named_parameters(*_CHOICES)
  def test_clip_state(self, name, mode):
    state = _make(name, mode, _hparams()).init(_params())
    _, state = _jitted(
      name, mode, _hparams(tau=100.0), _params(1), state, _params(), _HIGH
    )
    found = factory.clip_state(state)
    self.assertIsInstance(found, muon_clip.QKClipState)
    np.testing.assert_array_equal(found.last_max, 400)
    np.testing.assert_array_equal(
      found.last_factor, 1 if mode == 'off' else 1 / 4
    )

  def test_monitor_is_the_same_whatever_is_clipped(self):
    for name, mode in (choice[1:] for choice in _CHOICES):
      hparams = _hparams(tau=1000.0, monitor_tau=399.0)
      state = _make(name, mode, hparams).init(_params())
      _, state = _jitted(
        name, mode, hparams, _params(1), state, _params(), _HIGH
      )
      self.assertEqual(factory.clip_state(state).over_count, 1)

  def test_choices_of_muon_are_used(self):
    start = _second('muon_clip', 'off', _hparams())
    for key, value in (
      ('nesterov', True),
      ('coefficients', 'polar_express'),
      ('products', 'bfloat16'),
    ):
      optim = {**_optim('muon_clip', 'off'), key: value}
      tx = factory.make(
        ml_collections.FrozenConfigDict(optim),
        _hparams(),
        dimension_numbers=_dimension_numbers,
        attention=_attention,
      )
      params = _params()
      state = tx.init(params)
      for seed in (1, 2):
        updates, state = tx.update(
          _params(seed), state, params, max_logits=_HIGH
        )
      of = lambda tree: tree['layers']['attention']['query']['kernel']
      gap = np.abs(np.asarray(of(updates) - of(start)))
      # Of entries of about 0.2 * 3e-4.
      self.assertBetween(gap.max(), 1e-8, 1e-4, key)

  def test_unknown_names(self):
    for name, mode, message in (
      ('sgd', 'off', 'muon_clip or adamw'),
      ('adamw', 'on', 'off, weights, gain'),
      ('muon_clip', 'on', 'off, weights, gain'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        _make(name, mode, _hparams())


class MaxGradNormTest(parameterized.TestCase):
  def _clip(self, grads, max_norm):
    tx = factory._clip_by_global_norm(max_norm)
    return jax.jit(lambda g: tx.update(g, tx.init(g))[0])(grads)

  # Beside ordinary gradients: a subnormal, a norm that overflows, and NaN.
  @parameterized.parameters(1.0, 1e-40, 1e30, np.inf, np.nan)
  def test_inf_changes_no_bit(self, value):
    grads = {'w': jnp.array([3.0, value, -0.0]), 'b': jnp.float32(0.1)}
    chex.assert_trees_all_equal(self._clip(grads, jnp.float32(np.inf)), grads)

  # |(3, 4)| = 5.
  @parameterized.parameters((1.0, 0.2), (5.0, 1.0), (6.0, 1.0))
  def test_by_hand(self, max_norm, factor):
    grads = {'w': jnp.array([3.0]), 'b': jnp.float32(4.0)}
    chex.assert_trees_all_close(
      self._clip(grads, jnp.float32(max_norm)),
      jax.tree.map(lambda g: factor * g, grads),
      rtol=1e-6,
    )

  def test_keeps_bfloat16(self):
    grads = {'w': jnp.array([3.0, 4.0], jnp.bfloat16)}
    clipped = self._clip(grads, jnp.float32(2.5))
    self.assertEqual(clipped['w'].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(clipped['w'].astype(jnp.float32), [1.5, 2.0])

  def test_comes_first(self):
    params, grads = _params(), _params(1)
    scale = 0.5 / optax.tree.norm(grads)
    state = _make('adamw', 'off', _hparams()).init(params)
    run = lambda hparams, grads: _jitted(
      'adamw', 'off', hparams, grads, state, params, _CALM
    )[1]
    chex.assert_trees_all_close(
      run(_hparams(max_grad_norm=0.5), grads),
      run(_hparams(), jax.tree.map(lambda g: g * scale, grads)),
      rtol=1e-5,
    )


if __name__ == '__main__':
  absltest.main()
