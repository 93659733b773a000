"""What the QK-clip refuses, before any program runs."""

import collections

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmpo_jax.optim import muon_clip
from hmpo_jax.optim import qk_weights
from tests import attention_layouts as layouts

_Weight = qk_weights.Weight
_LAYOUT = layouts.LAYOUTS['grouped_with_bias']  # kernels [2, 8, heads, 4]
_BLOCK = _LAYOUT.blocks
_STATS = (2, 4)
_KERNEL = ('attention', 'query', 'kernel')


def _update(block, stats=_STATS, mode='weights', params=None, updates=None):
  """Traces init and update on statistics of these shapes."""
  params = _LAYOUT.params if params is None else params
  updates = params if updates is None else updates
  tx = muon_clip.qk_clip(1.0, attention=block, mode=mode)
  shapes = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
    stats,
    is_leaf=lambda node: isinstance(node, tuple),
  )
  return jax.eval_shape(
    lambda params, updates, x: tx.update(
      updates, tx.init(params), params, max_logits=x
    ),
    params,
    updates,
    shapes,
  )


def _with_query(**changes):
  """The block with a changed description of the query's kernel."""
  return _BLOCK._replace(query=(_Weight(_KERNEL, -2)._replace(**changes),))


class StatisticsTest(parameterized.TestCase):
  def test_are_required(self):
    params = _LAYOUT.params
    for tx in (
      muon_clip.qk_clip(1.0, attention=_BLOCK),
      optax.chain(optax.identity(), muon_clip.qk_clip(1.0, attention=_BLOCK)),
    ):
      for stats in ({}, {'max_logits': None}):
        with self.assertRaisesRegex(TypeError, r'call update\(.*max_logits='):
          tx.update(params, tx.init(params), params, **stats)

  def test_are_required_by_keyword(self):
    tx = muon_clip.qk_clip(1.0, attention=_BLOCK)
    params = _LAYOUT.params
    with self.assertRaises(TypeError):
      tx.update(params, tx.init(params), params, np.ones(_STATS))

  @parameterized.product(
    shape=((), (4,), (4, 2), (2, 2), (1, 2, 4), (2, 5), (1, 4)),
    mode=('weights', 'off'),
  )
  def test_of_another_shape(self, shape, mode):
    with self.assertRaisesRegex(ValueError, r'\[N_l, H\].*\(2, 4\); got'):
      _update(_BLOCK, shape, mode)

  def test_of_a_single_layer_have_no_axis_of_layers(self):
    layout = layouts.LAYOUTS['single_layer']
    _update(layout.blocks, (4,), params=layout.params)
    with self.assertRaisesRegex(ValueError, r'\(4,\); got'):
      _update(layout.blocks, (1, 4), params=layout.params)

  @parameterized.named_parameters(
    ('missing', {'a': (2, 4), 'b': (2, 4)}),
    ('unmatched', {'a': (2, 4), 'b': (2, 4), 'c': (4,), 'd': (4,)}),
    ('under_another_name', {'a': (2, 4), 'b': (2, 4), 'e': (4,)}),
    ('swapped', {'a': (4,), 'b': (2, 4), 'c': (2, 4)}),
    ('none', {'a': (2, 4), 'b': (2, 4), 'c': None}),
    ('without_names', [(2, 4), (2, 4), (4,)]),
    ('one_array', (2, 4)),
  )
  def test_of_another_structure(self, stats):
    layout = layouts.LAYOUTS['several']
    for mode in ('weights', 'off'):
      with self.assertRaisesRegex(ValueError, 'max_logits'):
        _update(layout.blocks, stats, mode, params=layout.params)

  @parameterized.parameters(([[1.0] * 4] * 2,), ({},))
  def test_that_are_no_array(self, stats):
    tx = muon_clip.qk_clip(1.0, attention=_BLOCK)
    params = _LAYOUT.params
    with self.assertRaisesRegex(ValueError, 'max_logits'):
      tx.update(params, tx.init(params), params, max_logits=stats)


class DescriptionTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('wrong', ('attention', 'q', 'kernel')),
    ('short', ('attention', 'query')),
    ('long', (*_KERNEL, 0)),
    ('with_collection', ('params', *_KERNEL)),
    ('empty', ()),
  )
  def test_path_that_leads_nowhere(self, path):
    block = _with_query(path=path)
    with self.assertRaisesRegex(ValueError, 'query: no array at'):
      _update(block)
    with self.assertRaisesRegex(ValueError, 'query: no array at'):
      muon_clip.qk_clip(1.0, attention=block).init(_LAYOUT.params)

  @parameterized.named_parameters(
    ('axis_beyond', {'heads': 4}, 'has no axis'),
    ('axis_before', {'heads': -5}, 'has no axis'),
    ('axis_of_layers', {'heads': 0}, 'has no axis'),
    ('axis_of_layers_from_the_end', {'heads': -4}, 'has no axis'),
    ('part_on_layers', {'part': (0, 0, 1)}, 'has no axis'),
    ('part_on_no_axis', {'part': (7, 0, 1)}, 'has no axis'),
    ('part_beyond', {'part': (-1, 2, 5)}, 'no entries 2 to 5'),
    ('part_before', {'part': (-1, -1, 2)}, 'no entries -1 to 2'),
    ('empty_part', {'part': (-1, 2, 2)}, 'no entries 2 to 2'),
    ('heads_in_part', {'part': (2, 0, 3)}, 'must hold 4 equal heads'),
  )
  def test_axes(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      _update(_with_query(**changes))

  def test_scalar(self):
    params = {**_LAYOUT.params, 'scale': np.float32(1)}
    for layers in (2, None):
      block = _with_query(path=('scale',), heads=0)._replace(num_layers=layers)
      stats = (2, 4) if layers else (4,)
      with self.assertRaisesRegex(ValueError, 'query: .* of shape'):
        _update(block, stats, params=params)

  def test_layers(self):
    block = _BLOCK._replace(num_layers=3)
    with self.assertRaisesRegex(ValueError, 'start with its 3 layers'):
      _update(block, (3, 4))

  def test_key_heads(self):
    for kv_heads in (3, 8, 0):
      block = _BLOCK._replace(num_kv_heads=kv_heads)
      with self.assertRaisesRegex(ValueError, 'must divide 4 query heads'):
        _update(block)
    # As many as divide, but not what the kernel [2, 8, 2, 4] holds.
    with self.assertRaisesRegex(ValueError, 'key: .* must hold 4 equal heads'):
      _update(_BLOCK._replace(num_kv_heads=4))

  def test_shared_beside_per_head(self):
    weights = _BLOCK.query[0], _BLOCK.query[1]._replace(heads=None)
    with self.assertRaisesRegex(ValueError, 'shared by the heads or none'):
      _update(_BLOCK._replace(query=weights))

  def test_shared_rotary_queries_of_several_heads(self):
    # One factor can't serve heads whose gammas differ.
    layout = layouts.LAYOUTS['latent']
    alone = layout.blocks.query_alone[0]._replace(heads=None)
    with self.assertRaisesRegex(ValueError, 'query_alone'):
      _update(
        layout.blocks._replace(query_alone=(alone,)), params=layout.params
      )

  @parameterized.parameters('query', 'key')
  def test_side_without_weights(self, side):
    block = _BLOCK._replace(**{side: ()})
    with self.assertRaisesRegex(ValueError, side):
      muon_clip.qk_clip(1.0, attention=block).init(_LAYOUT.params)

  @parameterized.parameters(
    (None,),
    ({},),
    ((),),
    ({'a': _BLOCK, 'b': 'attention'},),
    (('attention', 'query'),),
  )
  def test_blocks(self, attention):
    with self.assertRaisesRegex(ValueError, 'must hold Attention alone'):
      muon_clip.qk_clip(1.0, attention=attention).init(_LAYOUT.params)
    with self.assertRaisesRegex(ValueError, 'must hold Attention alone'):
      muon_clip.qk_clip(1.0, attention=lambda params: attention).init(
        _LAYOUT.params
      )

  @parameterized.parameters(
    ((0, 8), (0, 8)),
    ((0, 5), (4, 8)),
    ((2, 3), (0, 8)),
  )
  def test_entries_that_would_be_rescaled_twice(self, one, two):
    query = (
      _Weight(_KERNEL, -2, part=(1, *one)),
      _Weight(_KERNEL, -2, part=(-3, *two)),
    )
    with self.assertRaisesRegex(ValueError, 'name each once'):
      _update(_BLOCK._replace(query=query))

  def test_weight_of_two_blocks(self):
    blocks = {'one': _BLOCK, 'two': _BLOCK}
    with self.assertRaisesRegex(ValueError, 'name each once'):
      _update(blocks, stats={'one': _STATS, 'two': _STATS})

  def test_parts_beside_each_other(self):
    query = (
      _Weight(_KERNEL, -2, part=(1, 0, 4)),
      _Weight(_KERNEL, -2, part=(1, 4, 8)),
    )
    _update(_BLOCK._replace(query=query))

  @parameterized.parameters(
    (_Weight(_KERNEL, -2), 'must be a Weight in a tuple'),
    ((_KERNEL,), 'must be a Weight in a tuple'),
    ((_Weight(list(_KERNEL), -2),), 'tuple as its path'),
    ((_Weight(_KERNEL, 1.0),), 'axis as its heads'),
    ((_Weight(_KERNEL, -2, (0, 1)),), 'axis, start and stop'),
    ((_Weight(_KERNEL, -2, (1, 0.0, 4)),), 'axis, start and stop'),
    ((_Weight(_KERNEL, -2, offset=np.nan),), 'finite number as its offset'),
    ((_Weight(_KERNEL, -2, offset='1'),), 'finite number as its offset'),
  )
  def test_malformed_weight(self, query, message):
    with self.assertRaisesRegex(ValueError, message):
      _update(_BLOCK._replace(query=query))

  def test_number_of_heads_is_an_integer(self):
    with self.assertRaisesRegex(ValueError, 'num_heads=4.0, .*integers'):
      _update(_BLOCK._replace(num_heads=4.0))

  def test_statistics_in_another_container_are_one_line(self):
    layout = layouts.LAYOUTS['several']
    stats = collections.OrderedDict(
      (name, np.ones(block.shape)) for name, block in layout.blocks.items()
    )
    tx = muon_clip.qk_clip(1.0, attention=layout.blocks)
    with self.assertRaisesRegex(ValueError, r'^max_logits .*OrderedDict.*$'):
      tx.update(
        layout.params, tx.init(layout.params), layout.params, max_logits=stats
      )

  def test_off_needs_no_weights(self):
    _update(qk_weights.Attention(4, 2, (), (), num_layers=2), mode='off')


class CallTest(parameterized.TestCase):
  def test_params_are_required(self):
    tx = muon_clip.qk_clip(1.0, attention=_BLOCK)
    with self.assertRaisesRegex(ValueError, 'needs params'):
      tx.update(
        _LAYOUT.params, tx.init(_LAYOUT.params), max_logits=np.ones(_STATS)
      )

  def test_updates_like_params(self):
    with self.assertRaisesRegex(ValueError, 'differ in structure'):
      _update(_BLOCK, updates={'attention': _LAYOUT.params['attention']})

  @parameterized.named_parameters(
    ('tau_zero', {'tau': 0.0}, 'tau=0.0: must be positive'),
    ('tau_negative', {'tau': -1}, 'tau=-1'),
    ('tau_nan', {'tau': np.nan}, 'tau=nan'),
    ('monitor_tau', {'monitor_tau': -2.0}, 'monitor_tau=-2.0'),
    ('alpha_low', {'alpha': -0.1}, 'alpha=-0.1: must be from 0 to 1'),
    ('alpha_high', {'alpha': 1.5}, 'alpha=1.5'),
    ('mode', {'mode': 'on'}, "mode='on': must be one of off, weights, gain"),
    ('tau_numpy', {'tau': np.float32(-1)}, r'tau=.*-1.0.*: must be positive'),
    ('tau_array', {'tau': jnp.float32(0)}, 'tau=.*: must be positive'),
    ('tau_of_heads', {'tau': jnp.ones(4)}, r'tau of shape \(4,\)'),
    ('tau_text', {'tau': '100'}, "tau='100': must be a number, positive"),
    (
      'monitor_tau_function',
      {'monitor_tau': lambda count: 1.0},
      'monitor_tau=.*must be a number',
    ),
    ('alpha_none', {'alpha': None}, 'alpha=None: must be a number'),
    (
      'alpha_array',
      {'alpha': jnp.float32(np.nan)},
      'alpha=.*: must be from 0 to 1',
    ),
    ('alpha_complex', {'alpha': np.complex64(0.5)}, 'alpha .*one real number'),
  )
  def test_arguments(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      muon_clip.qk_clip(**{'tau': 1.0, 'attention': _BLOCK} | changes)
    with self.assertRaisesRegex(ValueError, message):
      muon_clip.muon_clip(
        1.0,
        **{
          'tau': 1.0,
          'attention': _BLOCK,
          'dimension_numbers': None,
          'adam_learning_rate': 1.0,
        }
        | changes,
      )


if __name__ == '__main__':
  absltest.main()
