"""What the QK-clip counts, in every mode, and that it can be saved."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from hmpo_jax.optim import muon_clip
from tests import attention_layouts as layouts
from tests import grouped_clip as grouped


def _after(history, mode='weights', monitor_tau=100.0):
  """State after updates that saw these largest logits, one a number."""
  state = grouped.transform().init(grouped.PARAMS)
  for value in history:
    stats = grouped.full(1.0).at[1, 3].set(value)
    _, state = grouped.clip(
      stats, state=state, mode=mode, monitor_tau=monitor_tau
    )
  return state


class StateTest(parameterized.TestCase):
  def test_is_a_history(self):
    first = grouped.transform().init(grouped.PARAMS)
    state = _after((200.0, 400.0, 50.0))
    chex.assert_trees_all_equal_shapes_and_dtypes(first, state)
    one_head = np.zeros(grouped.SHAPE, int)
    one_head[1, 3] = 1
    self.assertEqual(state.update_count, 3)
    self.assertEqual(state.clipped_count, 2)
    self.assertEqual(state.nonfinite_count, 0)
    self.assertEqual(state.smallest_factor, 1 / 4)
    np.testing.assert_array_equal(state.clip_count, 2 * one_head)
    np.testing.assert_array_equal(state.ever_clipped, one_head == 1)
    np.testing.assert_array_equal(state.max_ever, 1 + 399 * one_head)
    np.testing.assert_array_equal(state.last_max, 1 + 49 * one_head)
    np.testing.assert_array_equal(state.last_factor, 1)

  def test_an_update_with_several_clipped_heads_counts_once(self):
    _, state = grouped.clip(grouped.full(400.0))
    self.assertEqual(state.clipped_count, 1)
    np.testing.assert_array_equal(state.clip_count, 1)

  def test_counts_nonfinite_updates(self):
    state = _after((np.nan, np.inf, -np.inf, 7.0, np.nan))
    self.assertEqual(state.nonfinite_count, 3)
    self.assertEqual(state.max_ever[1, 3], 7)
    _, state = grouped.clip(grouped.full(1.0, _0=[np.nan, np.inf, np.inf, 1.0]))
    self.assertEqual(state.nonfinite_count, 1)
    self.assertTrue(np.isneginf(state.max_ever[0, :3]).all())

  def test_nothing_seen(self):
    state = _after((-np.inf,))
    self.assertTrue(np.isneginf(state.max_ever[1, 3]))
    self.assertEqual(state.over_count, 0)

  # NaN isn't below monitor_tau, so that it is over.
  @parameterized.named_parameters(
    ('below', (99.0, 100.0), 0, 0),
    ('nan', (np.nan,), 1, 1),
    ('inf', (np.inf, 101.0), 2, 2),
    ('then_below', (101.0, 102.0, 5.0), 2, 0),
    ('again', (101.0, 5.0, 102.0), 2, 1),
    ('blind', (101.0, -np.inf), 1, 0),
  )
  def test_counts_updates_over_monitor_tau(self, history, count, in_a_row):
    for mode in ('off', 'weights'):
      state = _after(history, mode)
      self.assertEqual(state.over_count, count)
      self.assertEqual(state.over_in_a_row, in_a_row)

  @parameterized.named_parameters(
    ('nine', [101.0] * 9, False),
    ('ten', [101.0] * 10, True),
    ('stays', [101.0] * 10 + [1.0], True),
    ('interrupted', [101.0] * 9 + [1.0] + [101.0] * 9, False),
    ('with_nan', [101.0] * 9 + [np.nan], True),
  )
  def test_exploded_is_ten_in_a_row(self, history, exploded):
    for mode in ('off', 'weights'):
      self.assertEqual(_after(history, mode).exploded, exploded)

  def test_monitoring_is_the_same_in_all_modes(self):
    layout = layouts.LAYOUTS['gains_shared']
    plain = layout.blocks._replace(query_gain=(), key_gain=())
    zeros = jax.tree.map(jnp.zeros_like, layout.params)
    seen = []
    for mode, block in (
      ('off', layout.blocks),
      ('weights', plain),
      ('gain', layout.blocks),
    ):
      tx = muon_clip.qk_clip(
        30.0, attention=block, mode=mode, monitor_tau=100.0
      )
      state, run = tx.init(layout.params), jax.jit(tx.update)
      for value in (101.0, 50.0, np.nan, 200.0, 100.0):
        _, state = run(
          zeros, state, layout.params, max_logits=grouped.full(1.0, _0=value)
        )
      seen.append(
        (
          state.over_count,
          state.over_in_a_row,
          state.exploded,
          state.nonfinite_count,
          state.last_max,
          state.max_ever,
        )
      )
      self.assertEqual(state.clipped_count, 0 if mode == 'off' else 4)
    chex.assert_trees_all_equal(*seen)
    self.assertEqual(seen[0][0], 3)

  def test_monitor_tau_is_tau_if_not_given(self):
    tx = grouped.transform(lambda count: 100.0 + 100 * count)
    state, run = tx.init(grouped.PARAMS), jax.jit(tx.update)
    for _ in range(3):
      _, state = run(
        grouped.ZEROS, state, grouped.PARAMS, max_logits=grouped.full(150.0)
      )
    self.assertEqual(state.over_count, 1)

  def test_off_changes_nothing_and_still_tells(self):
    updates, state = grouped.clip(grouped.full(400.0), mode='off')
    for leaf, base in zip(
      jax.tree.leaves(updates), jax.tree.leaves(grouped.BASE)
    ):
      np.testing.assert_array_equal(leaf, base)
    self.assertEqual(state.clipped_count, 0)
    self.assertEqual(state.over_count, 1)
    np.testing.assert_array_equal(state.last_factor, 1)
    np.testing.assert_array_equal(state.last_max, 400)

  def test_off_costs_no_operation_on_parameters(self):
    tx = grouped.transform(mode='off')
    jaxpr = jax.make_jaxpr(tx.update)(
      grouped.BASE,
      tx.init(grouped.PARAMS),
      grouped.PARAMS,
      max_logits=grouped.full(400.0),
    )
    largest = max(
      variable.aval.size
      for equation in jaxpr.eqns
      for variable in equation.outvars
    )
    self.assertLessEqual(largest, np.prod(grouped.SHAPE))

  def test_telemetry(self):
    told = muon_clip.telemetry(_after((200.0, 400.0, 50.0, 99.0)))
    chex.assert_trees_all_close(
      told,
      {
        'clipped_frac': jnp.float32(2 / 4),
        'over_frac': jnp.float32(2 / 4),
        'heads_ever_clipped_frac': jnp.float32(1 / 8),
        'smallest_factor': jnp.float32(1 / 4),
        'exploded': jnp.bool_(False),
      },
    )

  def test_telemetry_before_any_update(self):
    told = muon_clip.telemetry(grouped.transform().init(grouped.PARAMS))
    for name, value in told.items():
      self.assertEqual(value, 1 if name == 'smallest_factor' else 0, name)

  def test_telemetry_of_several_blocks(self):
    layout = layouts.LAYOUTS['several']
    tx = muon_clip.qk_clip(100.0, attention=layout.blocks)
    zeros = jax.tree.map(jnp.zeros_like, layout.params)
    stats = {
      'a': grouped.full(1.0),
      'b': grouped.full(1.0, _0=200.0),
      'c': jnp.full(4, 400.0),
    }
    _, state = jax.jit(tx.update)(
      zeros, tx.init(layout.params), layout.params, max_logits=stats
    )
    told = muon_clip.telemetry(state)
    # Of 8 + 8 + 4 heads 4 in b and 4 in c.
    self.assertAlmostEqual(float(told['heads_ever_clipped_frac']), 0.4)
    self.assertEqual(told['smallest_factor'], 1 / 4)
    self.assertEqual(told['clipped_frac'], 1)

  def test_checkpoint_round_trip(self):
    state = _after((200.0, np.nan, 400.0))
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'state'
      with ocp.StandardCheckpointer() as saver:
        saver.save(path, state)
      with ocp.StandardCheckpointer() as saver:
        restored = saver.restore(path, jax.tree.map(jnp.zeros_like, state))
    self.assertIsInstance(restored, muon_clip.QKClipState)
    chex.assert_trees_all_equal(restored, state, strict=True)
    again = [
      grouped.clip(grouped.full(500.0), state=s)[1] for s in (state, restored)
    ]
    chex.assert_trees_all_equal(*again, strict=True)


if __name__ == '__main__':
  absltest.main()
