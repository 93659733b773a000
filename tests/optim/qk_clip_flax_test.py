"""The QK-clip on the parameters of both APIs of Flax and on plain pytrees."""

from typing import Any
from typing import NamedTuple
import unittest

from absl.testing import absltest
from absl.testing import parameterized
import chex
import flax
from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmpo_jax.optim import muon_clip
from hmpo_jax.optim import qk_weights

_TAU = 100.0
# Two heads of two columns each; the first is 4 tau, so that the kernels of
# query and key are halved there and keep their bits in the other head.
_STATS = np.float32([400.0, 50.0])
_FACTORS = np.float32([0.5, 0.5, 1.0, 1.0])


def _block(*owner):
  """A block whose projections lie at these keys, each kernel [4, 2 * 2]."""
  weight = lambda name: (qk_weights.Weight((*owner, name, 'kernel'), heads=-1),)
  return qk_weights.Attention(2, 2, weight('q_proj'), weight('k_proj'))


def _clip(attention):
  """Adam at rate 0, so that the clip alone changes parameters."""
  return optax.chain(
    optax.adam(0.0), muon_clip.qk_clip(_TAU, attention=attention)
  )


class _Projections(nnx.Module):
  """Queries, keys and values of one layer in NNX."""

  def __init__(self, rngs):
    self.q_proj = nnx.Linear(4, 4, rngs=rngs)
    self.k_proj = nnx.Linear(4, 4, rngs=rngs)
    self.v_proj = nnx.Linear(4, 4, rngs=rngs)

  def __call__(self, x):
    return sum(
      jnp.sum(project(x) ** 2)
      for project in (self.q_proj, self.k_proj, self.v_proj)
    )


class _Layers(nnx.Module):
  def __init__(self, rngs):
    self.layer_0, self.layer_1 = _Projections(rngs), _Projections(rngs)

  def __call__(self, x):
    return self.layer_0(x) + self.layer_1(x)


class _Linen(nn.Module):
  """The same in Linen, its parameters boxed with their sharding or bare."""

  is_boxed: bool

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.lecun_normal()
    if self.is_boxed:
      init = nn.with_partitioning(init, ('embed', 'heads'))
    return sum(
      jnp.sum(nn.Dense(4, kernel_init=init, name=name)(x) ** 2)
      for name in ('q_proj', 'k_proj', 'v_proj')
    )


class _Fields(NamedTuple):
  """A node whose attribute `value` is one of several."""

  query: jax.Array
  key: jax.Array
  value: jax.Array


def _assert_clipped(before, after):
  """Kernels of one block by name: queries and keys clipped, values not."""
  for name, factors in (
    ('q_proj', _FACTORS),
    ('k_proj', _FACTORS),
    ('v_proj', np.ones(4, np.float32)),
  ):
    old, new = (np.asarray(kernels[name]) for kernels in (before, after))
    np.testing.assert_array_equal(new[:, factors == 1], old[:, factors == 1])
    np.testing.assert_allclose(new, old * factors, rtol=3e-7)


class NnxTest(parameterized.TestCase):
  @parameterized.named_parameters(('called', False), ('jitted', True))
  def test_one_block(self, is_jitted):
    model = _Projections(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, _clip(_block()), wrt=nnx.Param)
    before = _kernels(model)

    def step(model, optimizer):
      grads = nnx.grad(lambda model: model(jnp.ones((1, 4))))(model)
      optimizer.update(model, grads, max_logits=jnp.asarray(_STATS))

    (nnx.jit(step) if is_jitted else step)(model, optimizer)
    _assert_clipped(before, _kernels(model))

  def test_blocks_of_several_layers_and_two_steps(self):
    model = _Layers(nnx.Rngs(0))
    blocks = {name: _block(name) for name in ('layer_0', 'layer_1')}
    optimizer = nnx.Optimizer(model, _clip(blocks), wrt=nnx.Param)
    before = [_kernels(layer) for layer in (model.layer_0, model.layer_1)]
    grads = nnx.grad(lambda model: model(jnp.ones((1, 4))))(model)
    quiet = jnp.zeros(2)
    for layer, other in (('layer_0', 'layer_1'), ('layer_1', 'layer_0')):
      stats = {layer: jnp.asarray(_STATS), other: quiet}
      optimizer.update(model, grads, max_logits=stats)
    for old, layer in zip(before, (model.layer_0, model.layer_1)):
      _assert_clipped(old, _kernels(layer))

  @unittest.skipIf(
    flax.__version__.startswith('0.11.'),
    'nnx.Optimizer of flax 0.11 fails on whatever masks leaves, as '
    'optax.partition does',
  )
  def test_muon_before_the_clip(self):
    model = _Projections(nnx.Rngs(0))
    specs = lambda params: jax.tree.map(
      lambda x: (
        optax.contrib.MuonDimensionNumbers(0, 1) if x.ndim == 2 else None
      ),
      params,
    )
    tx = muon_clip.muon_clip(
      0.0,
      tau=_TAU,
      attention=_block(),
      dimension_numbers=specs,
      adam_learning_rate=0.0,
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = _kernels(model)
    grads = nnx.grad(lambda model: model(jnp.ones((1, 4))))(model)
    optimizer.update(model, grads, max_logits=jnp.asarray(_STATS))
    _assert_clipped(before, _kernels(model))

  def test_wrong_path_in_init(self):
    model = _Projections(nnx.Rngs(0))
    with self.assertRaisesRegex(ValueError, r"no array at \('layer', 'q_proj'"):
      nnx.Optimizer(model, _clip(_block('layer')), wrt=nnx.Param)


class LinenTest(parameterized.TestCase):
  @parameterized.named_parameters(('bare', False), ('boxed', True))
  def test_variables(self, is_boxed):
    model, x = _Linen(is_boxed), jnp.ones((1, 4))
    params = model.init(jax.random.key(0), x)
    grads = jax.grad(model.apply)(params, x)
    tx = _clip(_block('params'))
    updates, _ = tx.update(
      grads, tx.init(params), params, max_logits=jnp.asarray(_STATS)
    )
    after = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal_structs(after, params)
    read = lambda tree: {
      name: jax.tree.leaves(owner['kernel'])[0]
      for name, owner in tree['params'].items()
    }
    _assert_clipped(read(params), read(after))

  def test_boxed_parameters_and_bare_updates(self):
    # As nnx.Optimizer has it in init and update, here within one call.
    model, x = _Linen(True), jnp.ones((1, 4))
    boxed = model.init(jax.random.key(0), x)
    bare = nn.meta.unbox(boxed)
    tx = muon_clip.qk_clip(_TAU, attention=_block('params'))
    run = lambda params: tx.update(
      jax.tree.map(jnp.zeros_like, bare),
      tx.init(boxed),
      params,
      max_logits=jnp.asarray(_STATS),
    )[0]
    chex.assert_trees_all_equal(run(boxed), run(bare))


class PlainTest(absltest.TestCase):
  def test_dicts(self):
    params = {
      name: {'kernel': np.full((4, 4), i + 2.0, np.float32)}
      for i, name in enumerate(('q_proj', 'k_proj', 'v_proj'))
    }
    read = lambda tree: {name: owner['kernel'] for name, owner in tree.items()}
    after = _clipped(params, _block())
    _assert_clipped(read(params), read(after))

  def test_keys_and_attributes_that_only_read_like_a_box(self):
    # A dict's key `value` is one, and so is a field beside others.
    kernel = np.ones((4, 4), np.float32)
    nodes: dict[str, tuple[Any, Any]] = {
      'key': ({'value': kernel}, {'value': kernel * 2}),
      'field': (
        _Fields(kernel, kernel, kernel * 3),
        _Fields(kernel, kernel, kernel * 4),
      ),
    }
    for name, (query, key) in nodes.items():
      with self.subTest(name):
        block = qk_weights.Attention(
          2,
          2,
          (qk_weights.Weight(('q', 'value'), -1),),
          (qk_weights.Weight(('k', 'value'), -1),),
        )
        after = _clipped({'q': query, 'k': key}, block)
        read = lambda node: (
          node['value'] if isinstance(node, dict) else node.value
        )
        np.testing.assert_allclose(
          read(after['q']), read(query) * _FACTORS, rtol=3e-7
        )
        np.testing.assert_allclose(
          read(after['k']), read(key) * _FACTORS, rtol=3e-7
        )


def _clipped(params, block):
  """Parameters after an update that is nothing but a clip."""
  tx = muon_clip.qk_clip(_TAU, attention=block)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(
    zeros, tx.init(params), params, max_logits=jnp.asarray(_STATS)
  )
  return optax.apply_updates(params, updates)


def _kernels(module):
  """Copies of the kernels of one layer."""
  return {
    name: np.array(getattr(module, name).kernel[...])
    for name in ('q_proj', 'k_proj', 'v_proj')
  }


if __name__ == '__main__':
  absltest.main()
