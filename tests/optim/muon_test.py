"""Muon against float64 loops and optax, AdamW for all else."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmpo_jax.optim import muon
from tests import muon_reference as reference

_Spec = optax.contrib.MuonDimensionNumbers
_SHAPES = {
  'embed': (5, 8),
  'query': (2, 8, 4, 3),
  'key': (2, 8, 2, 3),
  'bias': (2, 4, 3),
  'out': (2, 4, 3, 8),
  'gate': (2, 8, 20),
  'down': (2, 20, 8),
  'router': (8, 4),
  'scale': (2, 8),
}
# Axes of inputs and outputs, in every form in which they may be written.
_JOINT = {
  'query': _Spec((1,), (2, 3)),
  'key': _Spec(1, (-2, -1)),
  'out': _Spec((1, 2), 3),
  'gate': _Spec(1, 2),
  'down': _Spec((-2,), (-1,)),
  'router': _Spec(0, 1),
}
_PER_HEAD = _JOINT | {
  'query': _Spec(1, 3),
  'key': _Spec((-3,), (-1,)),
  'out': _Spec(2, 3),
}
_ALL_SPECS = {'joint': _JOINT, 'per_head': _PER_HEAD}
_STEPS = 30


def _draw(seed, *lead):
  rng = np.random.default_rng(seed)
  return {
    name: jnp.float32(rng.normal(size=(*lead, *shape)))
    for name, shape in _SHAPES.items()
  }


def _tree(specs):
  return {name: specs.get(name) for name in _SHAPES}


_PARAMS, _GRADS = _draw(0), _draw(1, _STEPS)
_TRACES = []


@functools.partial(
  jax.jit, static_argnames=('heads', 'nesterov', 'coefficients', 'dtype')
)
def _updates(
  hparams,
  params,
  grads,
  heads='joint',
  nesterov=False,
  coefficients='keller',
  dtype='float32',
):
  """[steps, ...] updates, the parameters being held where they are."""
  _TRACES.append(None)
  tx = muon.muon(
    **hparams,
    dimension_numbers=_tree(_ALL_SPECS[heads]),
    nesterov=nesterov,
    coefficients=coefficients,
    dtype=dtype,
  )

  def body(state, grad):
    updates, state = tx.update(grad, state, params)
    return state, updates

  return jax.lax.scan(body, tx.init(params), grads)[1]


def _run(grads=None, params=None, hparams=None, **options):
  hparams = {
    k: jnp.float32(v) for k, v in (reference.HPARAMS | (hparams or {})).items()
  }
  return _updates(
    hparams,
    _PARAMS if params is None else params,
    _GRADS if grads is None else grads,
    **options,
  )


def _split(name, heads, x):
  """{index: [..., n, m]}: the matrices of a leaf, in plain indexing."""
  x = np.asarray(x, np.float64)
  lead = x.shape[: x.ndim - len(_SHAPES[name])]
  if name == 'router':
    return {(): x}
  if name in ('gate', 'down'):
    return {i: x[..., i, :, :] for i in range(2)}
  count = 4 if name in ('query', 'out') else 2
  if heads == 'joint':
    shape = (12, 8) if name == 'out' else (8, 3 * count)
    return {i: x[..., i, :, :, :].reshape(*lead, *shape) for i in range(2)}
  if name == 'out':
    return {(i, h): x[..., i, h, :, :] for i in range(2) for h in range(count)}
  return {(i, h): x[..., i, :, h, :] for i in range(2) for h in range(count)}


class ReferenceTest(parameterized.TestCase):
  @parameterized.parameters(
    ('joint', False, 'keller', 5e-8),
    ('per_head', False, 'keller', 5e-8),
    ('joint', True, 'polar_express', 2e-7),
  )
  def test_hidden_matrices(self, heads, nesterov, coefficients, atol):
    updates = _run(heads=heads, nesterov=nesterov, coefficients=coefficients)
    rate, decay = (
      reference.HPARAMS['learning_rate'],
      reference.HPARAMS['weight_decay'],
    )
    for name in _JOINT:
      told, grads, weights = (
        _split(name, heads, tree[name]) for tree in (updates, _GRADS, _PARAMS)
      )
      for at, grad in grads.items():
        expected = rate * (
          reference.muon(
            grad,
            weights[at],
            reference.HPARAMS['momentum'],
            nesterov,
            coefficients,
          )
          - decay * weights[at]
        )
        # Of updates whose entries are about 0.2 * 0.01.
        np.testing.assert_allclose(
          told[at], expected, rtol=0, atol=atol, err_msg=f'{name} {at}'
        )

  def test_all_else_follows_adamw(self):
    updates = _run(nesterov=True, coefficients='polar_express')
    for name in ('embed', 'bias', 'scale'):
      expected = reference.HPARAMS['adam_learning_rate'] * (
        reference.adam(_GRADS[name], 0.9, 0.95)
        - reference.HPARAMS['adam_weight_decay'] * np.float64(_PARAMS[name])
      )
      np.testing.assert_allclose(
        updates[name], expected, rtol=2e-5, atol=1e-8, err_msg=name
      )

  def test_decay_is_that_of_the_weights_alone(self):
    zeros = jax.tree.map(jnp.zeros_like, _GRADS)
    updates = _run(zeros)
    for name, weight in _PARAMS.items():
      decay = 0.01 * 0.1 if name in _JOINT else 0.003 * 0.2
      np.testing.assert_allclose(
        updates[name][-1], -decay * weight, rtol=3e-7, err_msg=name
      )

  @parameterized.parameters('joint', 'per_head')
  def test_root_mean_square_is_that_of_adam(self, heads):
    updates = _run(heads=heads, hparams={'weight_decay': 0.0})
    for name in _JOINT:
      for matrix in _split(name, heads, updates[name]).values():
        rms = np.sqrt(np.mean(np.square(matrix), axis=(1, 2)))
        # Newton-Schulz takes singular values into 0.68 .. 1.21, but for those
        # near 0, and a matrix of rank r has sqrt(r / (n m)) times their mean.
        self.assertBetween(rms.mean(), 0.2 * 0.8 * 0.01, 0.2 * 1.1 * 0.01)
        self.assertLess(rms.max(), 0.2 * 1.21 * 0.01)

  def test_equals_optax(self):
    leaves = 'query', 'out', 'router', 'embed'
    tx = optax.contrib.muon(
      reference.HPARAMS['learning_rate'],
      beta=reference.HPARAMS['momentum'],
      nesterov=False,
      consistent_rms=0.2,
      weight_decay=reference.HPARAMS['weight_decay'],
      adam_learning_rate=reference.HPARAMS['adam_learning_rate'],
      adam_weight_decay=reference.HPARAMS['adam_weight_decay'],
      adam_b1=0.9,
      adam_b2=0.95,
      muon_weight_dimension_numbers={name: _JOINT.get(name) for name in leaves},
    )

    @jax.jit
    def run(params, grads):

      def body(state, grad):
        updates, state = tx.update(grad, state, params)
        return state, updates

      return jax.lax.scan(body, tx.init(params), grads)[1]

    ours = _run()
    expected = run(
      *({name: tree[name] for name in leaves} for tree in (_PARAMS, _GRADS))
    )
    for name in leaves:
      np.testing.assert_allclose(
        ours[name],
        expected[name],
        rtol=0,
        atol=1e-5 * np.abs(expected[name]).max(),
        err_msg=name,
      )


class LayoutTest(parameterized.TestCase):
  def _first(self, specs, grads):
    """Scaled directions of the first update, of these leaves alone."""
    tx = muon.muon(1.0, dimension_numbers=specs, adam_learning_rate=1.0)
    return jax.jit(lambda g: tx.update(g, tx.init(g), g)[0])(grads)

  def test_heads_and_layers_are_matrices_of_their_own(self):
    query = _GRADS['query'][0]
    heads = {f'{i}{h}': query[i, :, h] for i in range(2) for h in range(4)}
    together = self._first({'query': _PER_HEAD['query']}, {'query': query})
    apart = self._first(dict.fromkeys(heads, _Spec(0, 1)), heads)
    for name, leaf in apart.items():
      np.testing.assert_allclose(
        together['query'][int(name[0]), :, int(name[1])], leaf, atol=1e-6
      )

  def test_axes_in_any_order(self):
    gate = _GRADS['gate'][0]
    plain = self._first({'gate': _Spec(1, 2)}, {'gate': gate})['gate']
    swapped = self._first({'gate': _Spec(2, 1)}, {'gate': gate})['gate']
    last = self._first(
      {'gate': _Spec(0, 1)}, {'gate': jnp.moveaxis(gate, 0, 2)}
    )
    np.testing.assert_allclose(swapped, plain, atol=1e-6)
    np.testing.assert_allclose(
      jnp.moveaxis(last['gate'], 2, 0), plain, atol=1e-6
    )

  def test_axis_named_twice(self):
    for spec in (_Spec(1, (1, 2)), _Spec(1, -2), _Spec((0, 0), 1)):
      with self.assertRaisesRegex(ValueError, 'named twice'):
        self._first({'gate': spec}, {'gate': _GRADS['gate'][0]})

  def test_axis_that_is_not_there(self):
    for spec in (_Spec(1, 3), _Spec(-4, 2)):
      with self.assertRaisesRegex(ValueError, 'axis'):
        self._first({'gate': spec}, {'gate': _GRADS['gate'][0]})

  def test_no_hidden_matrix(self):
    grads = {'a': _GRADS['scale'][0]}
    updates = self._first({'a': None}, grads)
    np.testing.assert_allclose(updates['a'], -jnp.sign(grads['a']), rtol=1e-4)

  def test_unknown_names(self):
    for options, message in (
      ({'coefficients': 'cubic'}, 'keller, polar_express'),
      ({'dtype': 'int8'}, 'float32, bfloat16'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        _run(**options)

  @parameterized.parameters(1.0, -0.1, np.float32(2), np.float32(np.nan))
  def test_momentum(self, momentum):
    with self.assertRaisesRegex(ValueError, 'momentum=.*below 1'):
      muon.muon(
        1.0, dimension_numbers=None, momentum=momentum, adam_learning_rate=1.0
      )


class ContractTest(parameterized.TestCase):
  def test_one_program_in_which_every_hyperparameter_acts(self):
    expected = _run()
    count = len(_TRACES)
    for name, value in reference.HPARAMS.items():
      updates = _run(hparams={name: value / 2})
      changed = {
        leaf
        for leaf in _SHAPES
        if not np.array_equal(updates[leaf], expected[leaf])
      }
      rest = set(_SHAPES) - set(_JOINT)
      self.assertEqual(
        changed, rest if name.startswith('adam') else set(_JOINT), name
      )
    self.assertLen(_TRACES, count)

  def test_constants_and_a_function_of_the_parameters(self):
    tx = muon.muon(
      **reference.HPARAMS,
      dimension_numbers=lambda params: {
        name: _JOINT.get(name) for name in params
      },
    )
    grad = jax.tree.map(lambda x: x[0], _GRADS)
    state = tx.init(_PARAMS)
    updates, after = jax.jit(tx.update)(grad, state, _PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, _PARAMS)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    expected = jax.tree.map(lambda x: x[0], _run())
    chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-7)

  def test_bfloat16_parameters(self):
    narrow = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    params, grads = narrow(_PARAMS), narrow(_GRADS)
    updates, expected = _run(grads, params), _run(wide(grads), wide(params))
    for name in _JOINT:
      # The momentum and the update are float32, also where weights are not.
      self.assertEqual(updates[name].dtype, jnp.float32)
      np.testing.assert_allclose(
        updates[name], expected[name], rtol=0, atol=1e-5
      )
    tx = muon.muon(**reference.HPARAMS, dimension_numbers=_tree(_JOINT))
    hidden = tx.init(params).inner_states['hidden']
    for leaf in jax.tree.leaves(hidden):
      self.assertEqual(leaf.dtype, jnp.float32)
    moved = optax.apply_updates(params, jax.tree.map(lambda x: x[0], updates))
    chex.assert_trees_all_equal_dtypes(moved, params)

  def test_bfloat16_products(self):
    near, exact = _run(dtype='bfloat16'), _run()
    for name in _SHAPES:
      if name in _JOINT:
        self.assertFalse(np.array_equal(near[name], exact[name]))
        np.testing.assert_allclose(
          near[name], exact[name], rtol=0, atol=0.06 * 0.01
        )
      else:
        np.testing.assert_array_equal(near[name], exact[name])

  def test_nan_stays_in_its_matrix(self):
    query = _GRADS['query'].at[-1, 1, 2, 3, 1].set(jnp.nan)
    updates = _run(_GRADS | {'query': query}, heads='per_head')
    spoiled = {name: np.isnan(leaf).sum() for name, leaf in updates.items()}
    self.assertEqual(spoiled.pop('query'), 8 * 3)
    self.assertFalse(any(spoiled.values()))

  def test_vmap_over_runs(self):
    rates, names = jnp.array([0.01, 0.02]), ('query', 'embed')
    specs = {name: _JOINT.get(name) for name in names}
    params = {name: _PARAMS[name] for name in names}

    def run(rate, grads):
      tx = muon.muon(
        **reference.HPARAMS | {'learning_rate': rate}, dimension_numbers=specs
      )
      return jax.lax.scan(
        lambda state, grad: tx.update(grad, state, params)[::-1],
        tx.init(params),
        grads,
      )[1]

    grads = [_GRADS, jax.tree.map(jnp.negative, _GRADS)]
    batched = jax.jit(jax.vmap(run))(
      rates, {name: jnp.stack([tree[name] for tree in grads]) for name in names}
    )
    for i in range(2):
      one = _run(grads[i], hparams={'learning_rate': rates[i]})
      for name in names:
        np.testing.assert_allclose(
          batched[name][i], one[name], rtol=0, atol=5e-7
        )


if __name__ == '__main__':
  absltest.main()
