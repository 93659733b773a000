"""The QK-clip where a norm stands between the weights and the logits."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmpo_jax.optim import muon_clip
from tests import attention_layouts as layouts
from tests import attention_reference as reference

_SHARED = layouts.LAYOUTS['gains_shared']
_STATS = jnp.ones(_SHARED.blocks.shape)


def _clip(layout, mode, block=None):
  """Jitted (params, max_logits) -> (params, state), the base update being 0."""
  block = layout.blocks if block is None else block
  tx = muon_clip.qk_clip(100.0, attention=block, mode=mode)

  @jax.jit
  def run(params, max_logits):
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(
      zeros, tx.init(params), params, max_logits=max_logits
    )
    return optax.apply_updates(params, updates), state

  return run


def _largest(layout, params):
  return reference.logits(layout, params)[0].max((2, 3))


class RefusalTest(parameterized.TestCase):
  def _assert_refused(self, block, mode, message):
    params = _SHARED.params
    tx = muon_clip.qk_clip(1.0, attention=block, mode=mode)
    with self.assertRaisesRegex(ValueError, message):
      tx.init(params)
    state = muon_clip.qk_clip(1.0, attention=block, mode='off').init(params)
    with self.assertRaisesRegex(ValueError, message):
      jax.eval_shape(
        lambda params: tx.update(params, state, params, max_logits=_STATS),
        params,
      )

  @parameterized.parameters(
    (('query_gain', 'key_gain'),), (('query_gain',),), (('key_gain',),)
  )
  def test_weights_behind_a_norm_are_not_rescaled(self, sides):
    block = _SHARED.blocks._replace(query_gain=(), key_gain=())
    block = block._replace(
      **{side: getattr(_SHARED.blocks, side) for side in sides}
    )
    self._assert_refused(block, 'weights', 'undoes any rescaling.*gain.*off')

  @parameterized.parameters(
    (('query_gain', 'key_gain'),), (('query_gain',),), (('key_gain',),)
  )
  def test_gains_that_are_not_there(self, sides):
    block = _SHARED.blocks._replace(**dict.fromkeys(sides, ()))
    self._assert_refused(block, 'gain', 'needs a norm with gains')

  def test_gains_that_do_not_fit(self):
    changed = lambda **changes: _SHARED.blocks._replace(
      query_gain=(_SHARED.blocks.query_gain[0]._replace(**changes),)
    )
    self._assert_refused(
      changed(path=('norms', 'q', 'scale')), 'gain', 'query: no array at'
    )
    self._assert_refused(changed(heads=0), 'gain', 'has no axis')

  def test_off_only_looks(self):
    tx = muon_clip.qk_clip(1.0, attention=_SHARED.blocks, mode='off')
    params = _SHARED.params
    updates, state = tx.update(
      params, tx.init(params), params, max_logits=2 * _STATS
    )
    chex.assert_trees_all_equal(updates, params)
    self.assertEqual(state.over_count, 1)


class GainTest(parameterized.TestCase):
  def test_shared_gains_take_the_smallest_factor_of_their_layer(self):
    params = jax.tree.map(np.ones_like, _SHARED.params)
    stats = _STATS.at[1].set(jnp.array([400.0, 1600.0, 1.0, np.nan]))
    after, state = _clip(_SHARED, 'gain')(params, stats)
    # tau = 100: the smallest gamma is 1/16, its root on both gains.
    for name in ('query', 'key'):
      np.testing.assert_array_equal(
        after['norms'][name]['scale'], [[1] * 4, [1 / 4] * 4]
      )
    np.testing.assert_array_equal(state.last_factor, [[1] * 4, [1 / 16] * 4])
    np.testing.assert_array_equal(state.clip_count, [[0] * 4, [1] * 4])
    self.assertEqual(state.smallest_factor, 1 / 16)
    for tree in (after, params):
      tree.pop('norms')
    chex.assert_trees_all_equal(after, params)

  def test_gain_of_one_plus_w(self):
    # gamma = 1/4: the gain 1 + 2 becomes 3/2, so w = 2 becomes 1/2.
    layout = layouts.LAYOUTS['gains_shared_plus_one']
    params = jax.tree.map(lambda x: np.full_like(x, 2), layout.params)
    after, _ = _clip(layout, 'gain')(params, 400 * _STATS)
    for name in ('query', 'key'):
      np.testing.assert_array_equal(after['norms'][name]['scale'], 1 / 2)

  def test_gains_per_head(self):
    # Keys of queries 0, 1 and 2, 3: one root for both, none beside a 1.
    layout = layouts.LAYOUTS['gains_per_head_plus_one']
    params = jax.tree.map(np.zeros_like, layout.params)
    for name in ('query', 'key'):
      params['norms'][name]['bias'] += 1
    stats = _STATS.at[0].set(jnp.array([400.0, 1600.0, 400.0, 1.0]))
    norms = _clip(layout, 'gain')(params, stats)[0]['norms']
    for leaf, offset in (('scale', 1), ('bias', 0)):
      of_head = lambda name, leaf=leaf, offset=offset: (
        np.asarray(norms[name][leaf][0, :, 0]) + offset
      )
      np.testing.assert_array_equal(of_head('query'), [1 / 2, 1 / 8, 1 / 4, 1])
      np.testing.assert_array_equal(of_head('key'), [1 / 2, 1])

  @parameterized.parameters(
    'gains_shared',
    'gains_shared_plus_one',
    'gains_per_head_plus_one',
    'gains_flat',
  )
  def test_gains_shrink_once_and_weights_never(self, name):
    layout = layouts.LAYOUTS[name]
    params = start = {
      **layout.params,
      'norms': jax.tree.map(lambda x: 30 * x, layout.params['norms']),
    }
    run = _clip(layout, 'gain')
    self.assertGreater(_largest(layout, params).max(), 300)
    first = None
    for _ in range(20):
      params, _ = run(params, jnp.float32(_largest(layout, params)))
      first = params if first is None else first
      self.assertLess(_largest(layout, params).max(), 100 * (1 + 1e-6))
    np.testing.assert_allclose(_largest(layout, params).max(), 100, rtol=2e-6)
    chex.assert_trees_all_equal(params['attention'], start['attention'])
    chex.assert_trees_all_close(params, first, rtol=1e-5, atol=1e-5)

  def test_weights_would_shrink_without_end(self):
    # Why it is refused: told of no norm, the clip never brings S down.
    block = _SHARED.blocks._replace(query_gain=(), key_gain=())
    run = _clip(_SHARED, 'weights', block)
    params = {
      **_SHARED.params,
      'norms': jax.tree.map(lambda x: 8 * x, _SHARED.params['norms']),
    }
    largest, norms = _largest(_SHARED, params), []
    for _ in range(10):
      params, _ = run(params, jnp.float32(_largest(_SHARED, params)))
      np.testing.assert_allclose(_largest(_SHARED, params), largest, rtol=1e-3)
      kernel = params['attention']['query']['kernel']
      norms.append(np.linalg.norm(kernel, axis=(1, 3)))
    self.assertGreater(largest.max(), 150)
    worst = np.unravel_index(np.argmax(largest), largest.shape)
    self.assertLess(norms[-1][worst], 0.2 * norms[0][worst])


if __name__ == '__main__':
  absltest.main()
