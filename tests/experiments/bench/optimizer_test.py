"""The suite of optimizers: what it times; no time is asserted."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from experiments.bench import optimizer
from experiments.bench import timing
from experiments.bench import torch_muon
from tests import small

_SHAPE = 3, 4, 6
_UPDATES = [
  ('optax muon', 'separate'),
  ('optax adamw', 'separate'),
  ('muon float32', 'separate'),
  ('muon bfloat16', 'separate'),
  ('muon float32 polar_express', 'separate'),
  ('optax muon', 'stacked'),
  ('muon float32', 'stacked'),
  ('muon bfloat16', 'stacked'),
  ('float32 matmul 2048', 'one product'),
]


def _options(**options):
  config = small.config(optim__name='muon_clip')
  return timing.Options([_SHAPE], 2, config, **options)


def _train_step(static, state, hparams, measure):
  """Does nothing: the real one takes long to compile."""
  del hparams
  return state, {static.optim.qk_clip: measure}


def _groups(**options):
  """Cases by group; `case.seconds()` is what the timed call returns."""
  groups = {}
  keep = lambda shape, cases, *_, **__: groups.update({shape: cases}) or []
  with (
    mock.patch.multiple(timing, timed=keep, wall_clock=lambda call: call),
    mock.patch.object(optimizer.ours_lib.learner, 'train_step', _train_step),
  ):
    optimizer.measure(_options(**options))
  return groups


def _names(cases):
  return [(case.variant, case.mode) for case in cases]


class OptimizerTest(parameterized.TestCase):
  @parameterized.parameters(
    ((1, 2, 3), 5 * (4 * 4 * 3 + 2 * 8)),
    ((1, 3, 2), 320),
    ((12, 512, 512), 48318382080),
  )
  def test_flops_by_hand(self, shape, expected):
    self.assertEqual(optimizer.newton_schulz_flops(*shape), expected)

  def test_every_muon_makes_the_same_first_update(self):
    updates = {}
    for case in _groups(variants='.*muon.*')['3x4x6'][:-1]:
      update = case.seconds()
      stacked = update.get('stacked')
      if stacked is None:
        stacked = jnp.stack([update[str(i)] for i in range(3)])
      updates[case.variant, case.mode] = stacked
    baseline = updates.pop(_UPDATES[0])
    self.assertEqual(baseline.shape, _SHAPE)
    self.assertLen(updates, 6)
    for (variant, mode), update in updates.items():
      # Other coefficients and bfloat16 make of 1 something from 0.68 to 1.14.
      cosine = jnp.sum(update * baseline) / (
        jnp.linalg.norm(update) * jnp.linalg.norm(baseline)
      )
      self.assertGreater(cosine, 0.97, f'{variant} {mode}')
      if variant in ('optax muon', 'muon float32'):
        np.testing.assert_allclose(update, baseline, rtol=0, atol=2e-6)

  def test_state_goes_on_and_gradients_stay(self):
    case = _groups(variants='muon float32')['3x4x6'][1]
    self.assertEqual(case.variant, 'muon float32')
    # M = G, then M = mu G + G: of the same direction.
    first, second = case.seconds(), case.seconds()
    for name, update in first.items():
      np.testing.assert_allclose(update, second[name], rtol=0, atol=1e-8)

  def test_groups_hold_the_baseline_and_what_is_wanted(self):
    groups = _groups()
    self.assertEqual(_names(groups['3x4x6']), _UPDATES)
    self.assertEqual(
      _names(groups['step of 4 updates']),
      [
        (variant, f'qk_clip {mode}')
        for variant in ('train step', 'qk_clip alone')
        for mode in ('off', 'weights')
      ],
    )
    self.assertEqual(
      [case.flops for case in groups['3x4x6']],
      [3 * 5 * (4 * 16 * 6 + 2 * 64), None] + 6 * [7680] + [2 * 2048**3],
    )
    found = {case.variant for cases in groups.values() for case in cases}
    self.assertEqual(
      set(optimizer.SUITE.variants()),
      found - {'float32 matmul 2048'} | {'torch muon'},
    )

  def test_groups_without_a_wanted_variant_are_left_out(self):
    groups = _groups(variants='optax adamw')
    self.assertEqual(list(groups), ['3x4x6'])
    self.assertEqual(_names(groups['3x4x6']), _UPDATES[:2] + _UPDATES[-1:])
    self.assertEqual(
      list(_groups(variants='train step')), ['step of 4 updates']
    )

  def test_steps_differ_in_the_clip_alone(self):
    off, weights, *_ = _groups(variants='train step')['step of 4 updates']
    self.assertEqual(list(off.seconds()), ['off'])
    self.assertEqual(list(weights.seconds()), ['weights'])

  def test_clip_by_itself_clips_in_every_update(self):
    *_, off, weights = _groups(variants='qk_clip alone')['step of 4 updates']
    updates, state = weights.seconds()
    self.assertEqual((state.update_count, state.clipped_count), (4, 4))
    unclipped, state = off.seconds()
    self.assertEqual((state.update_count, state.clipped_count), (4, 0))
    self.assertEqual(state.over_count, 4)
    for name in ('query', 'key'):
      kernels = [
        tree['layers']['attention'][name]['kernel']
        for tree in (updates, unclipped)
      ]
      self.assertFalse(np.array_equal(*kernels))

  def test_torch_takes_turns_in_the_same_rounds(self):
    with mock.patch.object(torch_muon, 'worker') as worker:
      worker.return_value.__enter__.return_value = lambda repeats: 0.5
      options = _options(variants='torch muon', torch_python='python')
      rows = optimizer.measure(options)
    worker.assert_called_once_with('python', _SHAPE)
    self.assertEqual(
      [row.variant for row in rows],
      ['optax muon', 'torch muon', 'float32 matmul 2048'],
    )
    self.assertEqual(rows[1].ms, 500)
    self.assertEqual(rows[1].gflops_per_s, round(7680 / 0.5e9, 3))
    self.assertIsNone(rows[1].compile_s)
    for row in (rows[0], rows[2]):
      self.assertGreater(row.compile_s, 0)
      self.assertGreater(row.gflops_per_s, 0)


if __name__ == '__main__':
  absltest.main()
