"""The QK-clip on every layout of weights, against loops in float64."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmpo_jax.optim import muon_clip
from hmpo_jax.optim import qk_weights
from tests import attention_layouts as layouts
from tests import attention_reference as reference

_NAMES = tuple((name, name) for name in layouts.LAYOUTS)
_TAU = 100.0
# Of query heads that share a key, in either order, all, some and none are over.
_MAX_LOGITS = (
  [[400.0, 50.0, 900.0, 250.0], [130.0, 101.0, -np.inf, np.nan]],
  [[400.0, 250.0, 900.0, 120.0], [-1e6, 99.0, 100.0, np.inf]],
)


@functools.cache
def _program(name):
  """(params, updates, max_logits, tau, alpha) -> (updates, state), jitted."""
  layout = layouts.LAYOUTS[name]

  @jax.jit
  def run(params, updates, max_logits, tau, alpha):
    tx = muon_clip.qk_clip(
      tau, attention=layout.blocks, mode=layout.mode, alpha=alpha
    )
    return tx.update(updates, tx.init(params), params, max_logits=max_logits)

  return run


def _run(name, params, updates, max_logits, tau, alpha=0.5):
  """As the program, max_logits a list with one array for each block."""
  blocks, treedef = jax.tree.flatten(
    layouts.LAYOUTS[name].blocks, is_leaf=qk_weights.is_block
  )
  shaped = [
    jnp.float32(x).reshape(block.shape)
    for x, block in zip(max_logits, blocks, strict=True)
  ]
  return _program(name)(params, updates, treedef.unflatten(shaped), tau, alpha)


def _state_of(state, field):
  return jax.tree.leaves(getattr(state, field))


class LayoutTest(parameterized.TestCase):
  @parameterized.named_parameters(*_NAMES)
  def test_every_logit_of_a_head_is_multiplied_by_gamma(self, name):
    layout = layouts.LAYOUTS[name]
    before = reference.logits(layout, layout.params)
    largest = [block.max((2, 3)) for block in before]
    tau = float(np.float32(np.median(np.concatenate(largest))))
    zeros = jax.tree.map(np.zeros_like, layout.params)
    updates, state = _run(name, layout.params, zeros, largest, tau)
    after = reference.logits(
      layout, optax.apply_updates(layout.params, updates)
    )
    gammas = reference.gammas(layout, largest, tau)
    self.assertTrue(any(np.any(gamma < 1) for gamma in gammas))
    for old, new, gamma, told in zip(
      before, after, gammas, _state_of(state, 'last_factor')
    ):
      expected = gamma[:, :, None, None] * old
      np.testing.assert_allclose(
        new, expected, rtol=0, atol=1e-6 * np.abs(old).max()
      )
      # What is clipped for its own sake lands on tau, neither above nor below.
      own = gamma * old.max((2, 3)) > tau * (1 - 1e-9)
      np.testing.assert_allclose(new.max((2, 3))[own], tau, rtol=6e-7)
      np.testing.assert_allclose(told, gamma.reshape(told.shape), rtol=2e-7)

  @parameterized.named_parameters(*_NAMES)
  def test_each_entry_gets_its_factor_or_keeps_its_bits(self, name):
    layout = layouts.LAYOUTS[name]
    shapes = jax.tree.map(np.shape, layout.params)
    base = layouts.normal(shapes, seed=1)
    for of_two_layers in _MAX_LOGITS:
      stats = [
        of_two_layers[: len(heads.query)]
        for heads in layout.read(layout.params)
      ]
      gammas = reference.gammas(layout, stats, _TAU)
      for alpha in (0.0, 0.3, 0.5, 1.0):
        updates, _ = _run(name, layout.params, base, stats, _TAU, alpha)
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, base)
        jax.tree.map(
          _assert_rescaled,
          layout.params,
          base,
          updates,
          *reference.factors(layout, gammas, alpha),
        )

  @parameterized.named_parameters(*_NAMES)
  def test_undone_are_the_parameters_without_a_clip(self, name):
    layout = layouts.LAYOUTS[name]
    zeros = jax.tree.map(np.zeros_like, layout.params)
    stats = [
      _MAX_LOGITS[0][: len(heads.query)] for heads in layout.read(layout.params)
    ]
    updates, state = _run(name, layout.params, zeros, stats, _TAU, 0.3)
    after = optax.apply_updates(layout.params, updates)
    undone = functools.partial(
      muon_clip.undone, attention=layout.blocks, mode=layout.mode, alpha=0.3
    )
    chex.assert_trees_all_close(
      undone(after, state.last_factor), layout.params, rtol=1e-6, atol=1e-6
    )
    ones = jax.tree.map(jnp.ones_like, state.last_factor)
    chex.assert_trees_all_equal(undone(after, ones), after)
    self.assertLess(min(map(np.min, jax.tree.leaves(state.last_factor))), 0.5)

  def test_alpha_of_one_leaves_the_keys_alone(self):
    layout = layouts.LAYOUTS['grouped_with_bias']
    zeros = jax.tree.map(np.zeros_like, layout.params)
    for alpha, side in ((1.0, 'key'), (0.0, 'query')):
      updates, _ = _run(
        'grouped_with_bias',
        layout.params,
        zeros,
        [np.full((2, 4), 400.0)],
        _TAU,
        alpha,
      )
      for other in ('query', 'key'):
        moved = np.any(updates['attention'][other]['kernel'])
        self.assertEqual(moved, other != side)

  def test_stacked_is_a_loop_over_layers(self):
    stacked = layouts.LAYOUTS['grouped_with_bias']
    base = layouts.normal(jax.tree.map(np.shape, stacked.params), seed=1)
    whole, _ = _run(
      'grouped_with_bias', stacked.params, base, _MAX_LOGITS[:1], _TAU
    )
    for i, row in enumerate(_MAX_LOGITS[0]):
      of_layer = lambda tree, i=i: {
        'attention': jax.tree.map(lambda x: x[i], tree['attention']),
        'embed': tree['embed'],
      }
      one, _ = _run(
        'single_layer_grouped_with_bias',
        of_layer(stacked.params),
        of_layer(base),
        [row],
        _TAU,
      )
      chex.assert_trees_all_equal(one, of_layer(whole))

  def test_layers_have_their_own_factor(self):
    layout = layouts.LAYOUTS['multi_head']
    ones = jax.tree.map(np.ones_like, layout.params)
    zeros = jax.tree.map(np.zeros_like, layout.params)
    updates, _ = _run(
      'multi_head', ones, zeros, [[[400.0] * 4, [1600.0] * 4]], _TAU
    )
    after = optax.apply_updates(ones, updates)['attention']
    for name in ('query', 'key'):
      for layer, factor in ((0, 1 / 2), (1, 1 / 4)):
        np.testing.assert_allclose(
          after[name]['kernel'][layer], factor, rtol=2e-7
        )

  def test_each_block_is_clipped_as_if_alone(self):
    layout = layouts.LAYOUTS['several']
    stats = [_MAX_LOGITS[0], _MAX_LOGITS[1], _MAX_LOGITS[0][0]]
    zeros = jax.tree.map(np.zeros_like, layout.params)
    together, _ = _run('several', layout.params, zeros, stats, _TAU)
    for name, alone, largest in (
      ('a', 'grouped_with_bias', stats[0]),
      ('b', 'latent', stats[1]),
    ):
      updates, _ = _run(
        alone, layout.params[name], zeros[name], [largest], _TAU
      )
      chex.assert_trees_all_equal(updates, together[name])

  def test_blocks_as_a_function_of_the_parameters(self):
    layout = layouts.LAYOUTS['latent']
    tx = muon_clip.qk_clip(
      _TAU,
      attention=lambda params: layout.blocks._replace(
        num_layers=params['query_up'].shape[0]
      ),
    )
    run = lambda params: tx.update(
      params, tx.init(params), params, max_logits=jnp.float32(_MAX_LOGITS[0])
    )[0]
    expected, _ = _run(
      'latent', layout.params, layout.params, _MAX_LOGITS[:1], _TAU
    )
    chex.assert_trees_all_close(
      jax.jit(run)(layout.params), expected, rtol=1e-6
    )

  def test_bfloat16_parameters(self):
    layout = layouts.LAYOUTS['multi_head']
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), layout.params)
    base = layouts.normal(jax.tree.map(np.shape, layout.params), seed=1)
    stats = [np.full((2, 4), 700.0)]
    updates, _ = _run('multi_head', params, base, stats, _TAU)
    self.assertEqual(updates['attention']['key']['kernel'].dtype, jnp.float32)
    after = optax.apply_updates(params, updates)
    factors, _ = reference.factors(
      layout, reference.gammas(layout, stats, _TAU), 0.5
    )
    for name in ('query', 'key', 'value'):
      old, update, new, factor = (
        tree['attention'][name]['kernel']
        for tree in (params, base, after, factors)
      )
      self.assertEqual(new.dtype, jnp.bfloat16)
      ideal = factor * (np.float64(old) + np.float64(update))
      # But for ties: the difference was not rounded to bfloat16 before.
      same = np.asarray(new) == np.asarray(jnp.asarray(ideal, jnp.bfloat16))
      self.assertGreater(np.mean(same), 0.99)

  def test_bfloat16_logits_land_near_tau(self):
    layout = layouts.LAYOUTS['grouped_with_bias']
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), layout.params)
    before = reference.logits(layout, params)[0]
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = _run(
      'grouped_with_bias', params, zeros, [before.max((2, 3))], 4.0
    )
    after = reference.logits(layout, optax.apply_updates(params, updates))[0]
    np.testing.assert_allclose(
      after.max((2, 3)), np.minimum(before.max((2, 3)), 4), rtol=4e-3
    )


def _assert_rescaled(param, before, after, factor, offset):
  np.testing.assert_array_equal(
    np.asarray(after)[factor == 1], before[factor == 1]
  )
  expected = factor * (offset + param + np.float64(before)) - offset - param
  np.testing.assert_allclose(after, expected, rtol=0, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
