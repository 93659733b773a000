"""Layouts of attention weights, each described twice.

Once as the QK-clip wants it, once in plain indexing for the float64 reference.
"""

from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from hmpo_jax.optim import qk_weights
from tests import attention_reference as reference

_LAYERS, _WIDTH = reference.LAYERS, reference.WIDTH
_HEADS, _HEAD_WIDTH = reference.HEADS, reference.HEAD_WIDTH
# Latent attention: entries without and with rotation, and those of a value.
_NOPE, _ROPE, _VALUE = 4, 2, 3

_Weight = qk_weights.Weight


def normal(shapes, seed=0):
  """Pytree of standard normal arrays; shapes are its leaves."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: np.float32(rng.normal(size=shape)),
    shapes,
    is_leaf=lambda node: (
      type(node) is tuple  # noqa: E721
      and all(isinstance(size, int) for size in node)
    ),
  )


def _joined(kernel, bias, count):
  """[N_l, count, D + 1, Dh] of a kernel and bias, stacked, flat or neither."""
  kernel = kernel.reshape(-1, _WIDTH, count, _HEAD_WIDTH)
  if bias is None:
    bias = np.zeros((len(kernel), count, _HEAD_WIDTH))
  bias = bias.reshape(-1, 1, count, _HEAD_WIDTH)
  return np.moveaxis(np.concatenate([kernel, bias], 1), 2, 1)


def _key_heads(kv_heads):
  """The key head of each query head."""
  return [head // (_HEADS // kv_heads) for head in range(_HEADS)]


def _separate(
  kv_heads=_HEADS,
  *,
  bias=False,
  layers=_LAYERS,
  flat=False,
  shared_key=False,
):
  """Kernels [N_l, D, heads, Dh] of their own, or [N_l, D, heads * Dh]."""
  lead = () if layers is None else (layers,)
  heads = lambda count: (count * _HEAD_WIDTH,) if flat else (count, _HEAD_WIDTH)
  of_side = {'query': heads(_HEADS), 'key': heads(kv_heads)}
  if shared_key:
    of_side['key'] = (_HEAD_WIDTH,)
  shapes = {
    name: {'kernel': (*lead, _WIDTH, *shape)}
    | ({'bias': (*lead, *shape)} if bias else {})
    for name, shape in of_side.items()
  }
  shapes['value'] = {'kernel': (*lead, _WIDTH, *heads(kv_heads))}
  shapes['out'] = {'kernel': (*lead, *heads(_HEADS), _WIDTH)}
  axes = {'query': -1 if flat else -2, 'key': -1 if flat else -2}
  if shared_key:
    axes['key'] = None
  weights = lambda name: tuple(
    _Weight(('attention', name, leaf), axes[name]) for leaf in shapes[name]
  )
  block = qk_weights.Attention(
    _HEADS,
    kv_heads,
    weights('query'),
    weights('key'),
    num_layers=layers,
  )

  def read(params):
    sides = [
      _joined(tree['kernel'], tree.get('bias'), count)
      for tree, count in (
        (params['attention']['query'], _HEADS),
        (params['attention']['key'], kv_heads),
      )
    ]
    return [reference.Heads(sides[0], sides[1][:, _key_heads(kv_heads)])]

  return reference.Layout(
    normal({'attention': shapes, 'embed': (5, _WIDTH)}), block, read
  )


def _fused(*, layers=_LAYERS, bias=False):
  """One kernel [N_l, D, 3, H, Dh]."""
  lead = () if layers is None else (layers,)
  shapes: dict = {'kernel': (*lead, _WIDTH, 3, _HEADS, _HEAD_WIDTH)}
  if bias:
    shapes['bias'] = (*lead, 3, _HEADS, _HEAD_WIDTH)
  side = lambda i: tuple(
    _Weight(('qkv', leaf), -2, part=(-3, i, i + 1)) for leaf in shapes
  )
  block = qk_weights.Attention(
    _HEADS, _HEADS, side(0), side(1), num_layers=layers
  )

  def read(params):
    of = lambda leaf, i: None if leaf is None else leaf[..., i, :, :]
    kernel, bias = params['qkv']['kernel'], params['qkv'].get('bias')
    query, key = (_joined(of(kernel, i), of(bias, i), _HEADS) for i in range(2))
    return [reference.Heads(query, key)]

  return reference.Layout(normal({'qkv': shapes}), block, read)


def _flat_fused(kv_heads):
  """One kernel [N_l, D, (H + 2 K) Dh] and bias: queries, keys, values."""
  ends = np.cumsum([0, _HEADS, kv_heads]) * _HEAD_WIDTH
  total = (_HEADS + 2 * kv_heads) * _HEAD_WIDTH
  sides = tuple(
    tuple(
      _Weight(('qkv', leaf), -1, (-1, int(start), int(stop)))
      for leaf in ('kernel', 'bias')
    )
    for start, stop in zip(ends, ends[1:])
  )
  block = qk_weights.Attention(_HEADS, kv_heads, *sides, num_layers=_LAYERS)

  def read(params):
    sides = [
      _joined(
        *(params['qkv'][leaf][..., start:stop] for leaf in ('kernel', 'bias')),
        count,
      )
      for start, stop, count in zip(ends, ends[1:], (_HEADS, kv_heads))
    ]
    return [reference.Heads(sides[0], sides[1][:, _key_heads(kv_heads)])]

  shapes = {'kernel': (_LAYERS, _WIDTH, total), 'bias': (_LAYERS, total)}
  return reference.Layout(normal({'qkv': shapes}), block, read)


def _latent():
  """Keys of which the rotary part is one for all heads, as in DeepSeek-V2."""
  shapes = {
    'query_up': (_LAYERS, _WIDTH, _HEADS, _NOPE + _ROPE),
    'key_value_up': (_LAYERS, _WIDTH, _HEADS, _NOPE + _VALUE),
    'key_rope': (_LAYERS, _WIDTH, _ROPE),
  }
  block = qk_weights.Attention(
    _HEADS,
    _HEADS,
    query=(_Weight(('query_up',), 2, (3, 0, _NOPE)),),
    key=(_Weight(('key_value_up',), 2, (3, 0, _NOPE)),),
    query_alone=(_Weight(('query_up',), 2, (3, _NOPE, _NOPE + _ROPE)),),
    num_layers=_LAYERS,
  )

  def read(params):
    query = np.moveaxis(params['query_up'], 2, 1)
    key = np.moveaxis(params['key_value_up'][..., :_NOPE], 2, 1)
    rope = np.repeat(params['key_rope'][:, None], _HEADS, 1)
    no_bias = lambda x: np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 0)))
    return [
      reference.Heads(
        no_bias(query),
        no_bias(np.concatenate([key, rope], -1)),
        rotated=_ROPE,
        alone=_ROPE,
      )
    ]

  return reference.Layout(normal(shapes), block, read)


class _Sides(NamedTuple):
  query: Any
  key: Any


def _sequences():
  """Parameters in lists, tuples and named tuples; blocks in a tuple."""
  shape = (_WIDTH, _HEADS, _HEAD_WIDTH)
  blocks = tuple(
    qk_weights.Attention(
      _HEADS,
      _HEADS,
      (_Weight((0, i, 'query'), 1),),
      (_Weight((0, i, 'key'), 1),),
    )
    for i in range(2)
  )
  read = lambda params: [
    reference.Heads(
      _joined(sides.query, None, _HEADS), _joined(sides.key, None, _HEADS)
    )
    for sides in params[0]
  ]
  params = normal(([_Sides(shape, shape), _Sides(shape, shape)], (5, _WIDTH)))
  return reference.Layout(params, blocks, read)


def _several(**layouts):
  """Blocks of different layouts in a dict."""

  def inside(name, node):
    if isinstance(node, _Weight):
      return node._replace(path=(name, *node.path))
    return node

  blocks = {
    name: jax.tree.map(
      lambda node, name=name: inside(name, node),
      layout.blocks,
      is_leaf=lambda node: isinstance(node, (_Weight, str, type(None))),
    )
    for name, layout in layouts.items()
  }
  read = lambda params: [
    heads
    for name in sorted(layouts)
    for heads in layouts[name].read(params[name])
  ]
  params = {name: layout.params for name, layout in layouts.items()}
  return reference.Layout(params, blocks, read)


def _with_norms(layout, query, key, *, offset=0.0, bias=False):
  """The layout with a norm on queries and keys, rescaled by its gains.

  Args:
    layout: from `_separate`.
    query: shape of the gain without layers: (Dh,), (H, Dh) or (H * Dh,).
    key: the same.
    offset: the gain is offset + w.
    bias: whether the norms have biases, of the gains' shapes.
  """
  block = layout.blocks
  lead = block.shape[:-1]
  leaves = ('scale', 'bias') if bias else ('scale',)
  sides = {'query': query, 'key': key}
  norms = normal(
    {
      name: dict.fromkeys(leaves, (*lead, *shape))
      for name, shape in sides.items()
    },
    seed=5,
  )

  def weights(name):
    heads = None if sides[name] == (_HEAD_WIDTH,) else len(lead)
    return tuple(
      _Weight(
        ('norms', name, leaf), heads, offset=offset if leaf == 'scale' else 0.0
      )
      for leaf in leaves
    )

  def gains(tree, reads):
    """[N_l, H, 2, Dh], of the head that each query head reads."""
    rows = []
    for leaf in ('scale', 'bias'):
      row = tree.get(leaf, np.zeros_like(tree['scale']))
      row = row.reshape(lead[0] if lead else 1, -1, _HEAD_WIDTH)
      rows.append(row[:, reads] if row.shape[1] > 1 else row.repeat(_HEADS, 1))
    return np.stack(rows, 2)

  def read(params):
    (plain,) = layout.read(params)
    reads = _key_heads(block.num_kv_heads)
    tree = params['norms']
    return [
      plain._replace(
        query_gain=gains(tree['query'], list(range(_HEADS))),
        key_gain=gains(tree['key'], reads),
        offset=offset,
      )
    ]

  block = block._replace(query_gain=weights('query'), key_gain=weights('key'))
  return reference.Layout(
    {**layout.params, 'norms': norms}, block, read, 'gain'
  )


LAYOUTS = {
  'multi_head': _separate(),
  'multi_head_with_bias': _separate(bias=True),
  'grouped_with_bias': _separate(2, bias=True),
  'multi_query': _separate(1),
  'multi_query_shared_kernel': _separate(1, bias=True, shared_key=True),
  'single_layer': _separate(layers=None),
  'single_layer_grouped_with_bias': _separate(2, bias=True, layers=None),
  'flat_grouped_with_bias': _separate(2, bias=True, flat=True),
  'fused': _fused(),
  'fused_with_bias_single_layer': _fused(layers=None, bias=True),
  'flat_fused_grouped': _flat_fused(2),
  'flat_fused_multi_query': _flat_fused(1),
  'latent': _latent(),
  'sequences': _sequences(),
  'several': _several(
    a=_separate(2, bias=True), b=_latent(), c=_separate(1, layers=None)
  ),
  'gains_shared': _with_norms(_separate(2), (_HEAD_WIDTH,), (_HEAD_WIDTH,)),
  'gains_shared_plus_one': _with_norms(
    _separate(2), (_HEAD_WIDTH,), (_HEAD_WIDTH,), offset=1.0
  ),
  'gains_single_layer': _with_norms(
    _separate(layers=None), (_HEAD_WIDTH,), (_HEAD_WIDTH,), bias=True
  ),
  'gains_per_head_plus_one': _with_norms(
    _separate(2), (_HEADS, _HEAD_WIDTH), (2, _HEAD_WIDTH), offset=1.0, bias=True
  ),
  'gains_flat': _with_norms(
    _separate(2), (_HEADS * _HEAD_WIDTH,), (2 * _HEAD_WIDTH,)
  ),
  'gains_of_keys_shared': _with_norms(
    _separate(), (_HEADS, _HEAD_WIDTH), (_HEAD_WIDTH,)
  ),
  'gains_of_queries_shared': _with_norms(
    _separate(2), (_HEAD_WIDTH,), (2, _HEAD_WIDTH)
  ),
}
