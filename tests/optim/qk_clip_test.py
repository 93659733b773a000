"""The QK-clip: factors by hand, for any logits, and the contract of optax."""

import warnings

from absl.testing import absltest
from absl.testing import parameterized
import chex
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hmpo_jax.optim import muon_clip
from tests import attention_layouts as layouts
from tests import attention_reference as reference
from tests import grouped_clip as grouped
from tests import reference as double

_SINGLE = layouts.LAYOUTS['single_layer']


class FactorsTest(parameterized.TestCase):
  # tau = 100. The larger gamma of a pair goes into their key as its root:
  # (1/4, 1/16) is 1/2 on the key, so 1/2 and 1/8 on the queries; (1, 1/4) is 1
  # on the key, so 1 and 1/4.
  @parameterized.named_parameters(
    ('both', (400.0, 1600.0), (1 / 2, 1 / 8), 1 / 2),
    ('one', (100.0, 400.0), (1.0, 1 / 4), 1.0),
    ('none', (-5.0, -np.inf), (1.0, 1.0), 1.0),
    ('one_beside_nan', (np.nan, 400.0), (1.0, 1 / 4), 1.0),
    ('one_beside_minus_inf', (400.0, -np.inf), (1 / 4, 1.0), 1.0),
  )
  def test_of_a_shared_key(self, pair, query, key):
    ones = jax.tree.map(jnp.ones_like, grouped.PARAMS)
    stats = grouped.full(1.0, _1=[1.0, 1.0, *pair])
    updates, _ = grouped.clip(stats, grouped.ZEROS, params=ones)
    after = optax.apply_updates(ones, updates)['attention']
    expected = {
      'query': np.array([[1, 1, 1, 1], [1, 1, *query]]),
      'key': np.array([[1, 1], [1, key]]),
    }
    for name, factor in expected.items():
      for leaf, axes in (('kernel', (1, 3)), ('bias', 2)):
        np.testing.assert_allclose(
          after[name][leaf],
          np.broadcast_to(
            np.expand_dims(factor, axes), after[name][leaf].shape
          ),
          rtol=2e-7,
        )

  def test_acts_on_params_plus_updates(self):
    # gamma = 1/4 for both queries of the first key.
    updates, _ = grouped.clip(grouped.full(50.0, _0=[400.0, 400.0, 1.0, 1.0]))
    for name, head in (('query', 0), ('query', 1), ('key', 0)):
      w, u, new = (
        np.float64(tree['attention'][name]['kernel'])[0, :, head]
        for tree in (grouped.PARAMS, grouped.BASE, updates)
      )
      np.testing.assert_allclose(new, (w + u) / 2 - w, atol=5e-7)

  @parameterized.named_parameters(
    ('at_tau', 100.0),
    ('below', 99.0),
    ('negative', -1e6),
    ('blind', -np.inf),
    ('nan', np.nan),
    ('inf', np.inf),
  )
  def test_without_need_no_bit_changes(self, value):
    updates, state = grouped.clip(grouped.full(value))
    chex.assert_trees_all_equal(updates, grouped.BASE)
    np.testing.assert_array_equal(state.last_factor, 1)
    self.assertEqual(state.clipped_count, 0)
    self.assertFalse(np.any(state.ever_clipped))

  def test_one_ulp_above_tau_is_clipped(self):
    _, state = grouped.clip(
      grouped.full(np.nextafter(np.float32(100), np.float32(200)))
    )
    np.testing.assert_array_less(state.last_factor, 1)
    np.testing.assert_allclose(state.last_factor, 1, rtol=2e-7)

  def test_nonfinite_statistics_spare_the_other_heads(self):
    updates, state = grouped.clip(
      grouped.full(1.0, _0=[np.nan, 400.0, np.inf, 400.0])
    )
    chex.assert_tree_all_finite(updates)
    np.testing.assert_array_equal(
      state.last_factor, [[1, 1 / 4, 1, 1 / 4], [1] * 4]
    )

  @parameterized.parameters(0.0, 0.5, 1.0)
  def test_quotient_that_underflows(self, alpha):
    # 1e-8 / 3e38 is 0 in float32.
    updates, state = grouped.clip(
      grouped.full(3e38), grouped.ZEROS, tau=1e-8, alpha=alpha
    )
    chex.assert_tree_all_finite(updates)
    self.assertTrue(np.all(state.last_factor > 0))
    after = optax.apply_updates(grouped.PARAMS, updates)['attention']
    for name, share in (('query', alpha), ('key', 1 - alpha)):
      old = grouped.PARAMS['attention'][name]['kernel']
      np.testing.assert_allclose(
        after[name]['kernel'], 1e-38**share * old, rtol=0, atol=1e-6
      )

  @hypothesis.settings(deadline=None, max_examples=30)
  @hypothesis.given(
    st.lists(
      st.floats(allow_subnormal=False, width=32), min_size=8, max_size=8
    ),
    st.floats(1 / 128, 1e4, width=32),
    st.floats(0, 1, width=32),
  )
  def test_factors_for_any_logits(self, values, tau, alpha):
    stats = np.array(values, np.float32).reshape(grouped.SHAPE)
    ones = jax.tree.map(jnp.ones_like, grouped.PARAMS)
    updates, state = grouped.clip(
      jnp.asarray(stats), grouped.ZEROS, params=ones, tau=tau, alpha=alpha
    )
    after = optax.apply_updates(ones, updates)['attention']
    query, key = (after[name]['bias'][:, :, 0] for name in ('query', 'key'))
    for factor in (query, key, state.last_factor):
      self.assertTrue(np.all((factor >= 0) & (factor <= 1)))
    self.assertTrue(np.all(state.last_factor > 0))
    over = np.isfinite(stats) & (stats > np.float32(tau))
    gamma = np.where(
      over, np.float32(tau) / np.where(over, np.float64(stats), 1), 1
    )
    # A factor is 1 plus a float32 update: 6e-8 is its absolute precision.
    np.testing.assert_allclose(query * key.repeat(2, 1), gamma, atol=5e-7)
    np.testing.assert_array_equal(query[~over], 1)
    np.testing.assert_array_equal(state.ever_clipped, over)

  @hypothesis.settings(deadline=None, max_examples=15)
  @hypothesis.given(
    st.integers(0, 2**32 - 1),
    st.floats(0.5, 8, width=32),
    st.floats(0, 1, width=32),
  )
  def test_is_idempotent(self, seed, tau, alpha):
    params = layouts.normal(jax.tree.map(np.shape, grouped.PARAMS), seed)
    seen = []
    for _ in range(2):
      largest = jnp.float32(
        reference.logits(grouped.LAYOUT, params)[0].max((2, 3))
      )
      updates, state = grouped.clip(
        largest, grouped.ZEROS, params=params, tau=tau, alpha=alpha
      )
      params = optax.apply_updates(params, updates)
      seen.append(params)
    # An update rounds like the weight before, not like what is left of it.
    np.testing.assert_allclose(state.last_factor, 1, rtol=1e-5)
    chex.assert_trees_all_close(*seen, rtol=1e-5)

  def test_heads_are_treated_alike(self):
    stats = grouped.full(90.0, _0=[400.0, 50.0, 900.0, 250.0])
    order = np.array([2, 3, 0, 1])  # swaps the groups
    swap = lambda tree: jax.tree_util.tree_map_with_path(
      lambda path, x: {
        'query': lambda: jnp.take(x, order, -2),
        'key': lambda: x[..., ::-1, :],
      }.get(path[min(1, len(path) - 1)].key, lambda: x)(),
      tree,
    )
    updates, _ = grouped.clip(stats)
    swapped, _ = grouped.clip(
      stats[:, order], swap(grouped.BASE), params=swap(grouped.PARAMS)
    )
    chex.assert_trees_all_equal(swapped, swap(updates))


class ContractTest(parameterized.TestCase):
  def test_follows_any_optimizer(self):
    base = optax.adamw(0.1, weight_decay=0.1)
    stats = grouped.full(50.0, _0=[400.0, 400.0, 1.0, 1.0])

    @jax.jit
    def run(params):
      both = optax.chain(base, grouped.transform())
      plain, _ = base.update(grouped.BASE, base.init(params), params)
      clipped, _ = both.update(
        grouped.BASE, both.init(params), params, max_logits=stats
      )
      return plain, clipped

    plain, clipped = run(grouped.PARAMS)
    after = optax.apply_updates(grouped.PARAMS, plain)
    for name, heads in (('query', (0, 1)), ('key', (0,))):
      for leaf in ('kernel', 'bias'):
        x = after['attention'][name][leaf]
        after['attention'][name][leaf] = x.at[0, ..., heads, :].divide(2)
    chex.assert_trees_all_close(
      optax.apply_updates(grouped.PARAMS, clipped), after, atol=5e-7
    )
    for tree in (plain, clipped):
      tree['attention'].pop('query')
    np.testing.assert_array_equal(
      plain['attention']['key']['kernel'][:, :, 1],
      clipped['attention']['key']['kernel'][:, :, 1],
    )
    for tree in (plain, clipped):
      tree['attention'].pop('key')
    chex.assert_trees_all_equal(plain, clipped)

  def test_one_program_for_all_numbers(self):
    grouped.clip(grouped.full(1.0))
    count = grouped.update._cache_size()
    for number in (1.0, 2.0, 300.0):
      _, state = grouped.clip(
        grouped.full(number), tau=number / 2, monitor_tau=number
      )
      updates, state = grouped.clip(
        grouped.full(7.0), state=state, alpha=number / 300
      )
    self.assertEqual(grouped.update._cache_size(), count)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, grouped.BASE)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      state, grouped.transform().init(grouped.PARAMS)
    )

  def test_numpy_arrays_without_jit(self):
    tx = muon_clip.qk_clip(100.0, attention=_SINGLE.blocks)
    base = jax.tree.map(np.ones_like, _SINGLE.params)
    updates, _ = tx.update(
      base,
      tx.init(_SINGLE.params),
      _SINGLE.params,
      max_logits=np.full(4, 400.0),
    )
    for name, leaf in updates['attention'].items():
      w = np.float64(_SINGLE.params['attention'][name]['kernel'])
      expected = (w + 1) / 2 - w if name in ('query', 'key') else 1
      np.testing.assert_allclose(leaf['kernel'], expected, atol=5e-7)

  def test_numpy_statistics_of_another_dtype(self):
    expected, _ = grouped.clip(grouped.full(400.0))
    for dtype in (np.int32, np.float16, jnp.bfloat16):
      updates, state = grouped.clip(
        np.asarray(grouped.full(400.0)).astype(dtype)
      )
      chex.assert_trees_all_equal(updates, expected)
      self.assertEqual(state.last_max.dtype, jnp.float32)

  def test_vmap_over_runs(self):
    runs = [
      jax.tree.map(
        jnp.asarray,
        layouts.normal(jax.tree.map(np.shape, grouped.PARAMS), seed),
      )
      for seed in range(3)
    ]
    taus, alphas = jnp.array([100.0, 200.0, 1e6]), jnp.array([0.5, 0.0, 1.0])
    stats = jnp.stack(
      [grouped.full(400.0), grouped.full(1.0, _1=500.0), grouped.full(600.0)]
    )
    state = grouped.transform().init(grouped.PARAMS)
    batched = jax.jit(
      jax.vmap(
        lambda params, stats, tau, alpha: grouped.transform(
          tau, alpha=alpha
        ).update(grouped.BASE, state, params, max_logits=stats)
      )
    )(jax.tree.map(lambda *x: jnp.stack(x), *runs), stats, taus, alphas)
    for i, run in enumerate(runs):
      one = grouped.clip(
        stats[i], params=run, tau=taus[i], alpha=alphas[i], monitor_tau=taus[i]
      )
      chex.assert_trees_all_close(
        jax.tree.map(lambda x, i=i: x[i], batched), one, rtol=1e-6, atol=1e-6
      )

  def test_scan_over_updates_with_a_schedule_and_donation(self):
    # tau = 100, 200, 400, then the logits exceed it by 8, 2, 1/2.
    tx = grouped.transform(lambda count: 100.0 * 2.0**count)

    def body(carry, stats):
      params, state = carry
      updates, state = tx.update(grouped.ZEROS, state, params, max_logits=stats)
      return (optax.apply_updates(params, updates), state), state.last_factor

    copy = jax.tree.map(jnp.copy, grouped.PARAMS)
    stats = jnp.stack([grouped.full(v) for v in (800.0, 400.0, 200.0)])
    run = jax.jit(
      lambda params, state: jax.lax.scan(body, (params, state), stats),
      donate_argnums=(0, 1),
    )
    (params, state), factors = run(copy, tx.init(copy))
    np.testing.assert_allclose(factors[:, 0, 0], [1 / 8, 1 / 2, 1])
    self.assertEqual(state.update_count, 3)
    before, after = (
      reference.logits(grouped.LAYOUT, tree)[0]
      for tree in (grouped.PARAMS, params)
    )
    np.testing.assert_allclose(after, before / 16, rtol=0, atol=1e-6)

  def test_float64_mode(self):
    expected, _ = grouped.clip(grouped.full(400.0))
    with double.x64(), warnings.catch_warnings():
      warnings.simplefilter('error')
      tx = grouped.transform(alpha=jnp.float64(0.5))
      updates, state = jax.jit(tx.update)(
        grouped.BASE,
        tx.init(grouped.PARAMS),
        grouped.PARAMS,
        max_logits=jnp.float64(grouped.full(400.0)),
      )
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, grouped.BASE)
    chex.assert_trees_all_close(updates, expected, rtol=0, atol=5e-7)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      state, grouped.transform().init(grouped.PARAMS)
    )


if __name__ == '__main__':
  absltest.main()
