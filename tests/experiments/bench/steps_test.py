"""The suite of whole steps: what it times; no time is asserted."""

import contextlib
import io
from unittest import mock

from absl.testing import absltest
import numpy as np

from experiments.bench import limits
from experiments.bench import steps
from experiments.bench import timing
from hmpo_jax.training import learner
from tests import small
from tests.experiments.bench import ours_test as bench_ours_test

_TINY = bench_ours_test.TINY
_LIMITS = timing.Limits(2.0, 4.0, 'matmul')


def _options(**options):
  return timing.Options([_TINY], 2, small.config(), limits=_LIMITS, **options)


def _learn(static, state, hparams, rollout, scores, measure):
  """Learns nothing: the real one takes long to compile."""
  del static, hparams, measure
  return state, {'reward': scores.reward, 'tokens': rollout.tokens}


def _train_step(static, state, hparams, measure):
  del hparams, measure
  return state._replace(step=state.step + 1), {
    'recompute': static.rollout.old_logprobs == 'recompute',
    'step': state.step,
  }


@contextlib.contextmanager
def _small_programs():
  with mock.patch.multiple(learner, train_step=_train_step, learn=_learn):
    yield


class StepsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self._python = bench_ours_test.process(_TINY.num_params)

  def _measure(self, **options):
    with _small_programs():
      with mock.patch.object(steps.sys, 'executable', self._python):
        return steps.measure(_options(**options))

  def test_rows_of_ours_and_of_peers(self):
    faster = bench_ours_test.process(
      _TINY.num_params, bench_ours_test.ANSWER.replace('3.0', '1.5')
    )
    rows = self._measure(peers={'trl': self._python, 'tunix': faster})
    self.assertEqual(
      [(row.variant, row.mode) for row in rows],
      [
        ('hmpo_jax', 'step'),
        ('hmpo_jax', 'rollout'),
        ('hmpo_jax', 'learning'),
        ('hmpo_jax, recompute', 'step'),
        ('hmpo_jax, own process', 'step'),
        ('trl', 'step'),
        ('trl', 'rollout'),
        ('trl', 'learning'),
        ('tunix', 'step'),
        ('tunix', 'rollout'),
        ('tunix', 'learning'),
      ],
    )
    by_name = {(row.variant, row.mode): row for row in rows}
    own = by_name['hmpo_jax, own process', 'step']
    self.assertEqual(
      (own.ms, own.peak_mb, own.tokens_per_s), (3000, 40, 30 / 3)
    )
    self.assertEqual((own.to_trl, own.to_tunix, own.to_faster), (1, 2, 2))
    self.assertEqual(by_name['trl', 'rollout'].ms, 2000)
    self.assertEqual(by_name['trl', 'learning'].ms, 1000)
    self.assertIsNone(by_name['hmpo_jax', 'rollout'].to_trl)
    for row in rows[:4]:
      self.assertGreaterEqual(row.compile_s, 0)
      self.assertIsNotNone(row.temporary_mb)
      self.assertGreater(row.of_limit, 0)
    step, rollout, learning = (
      limits.rollout_flops(_TINY) + limits.learning_flops(_TINY),
      limits.rollout_flops(_TINY),
      limits.learning_flops(_TINY),
    )
    for row, flops in zip(rows, (step, rollout, learning, step)):
      # Of 4 GFLOP/s.
      self.assertAlmostEqual(
        row.of_limit, flops / 4e6 / row.ms, delta=1e-4 + 1e-3 * row.of_limit
      )

  def test_halves_are_those_of_the_step(self):
    cases = []
    keep = lambda shape, found, *_, **__: cases.extend(found) or []
    with _small_programs():
      with mock.patch.multiple(
        timing, timed=keep, wall_clock=lambda call: call
      ):
        steps.measure(_options(variants='none'))
    step, rollout, learning = (case.seconds() for case in cases)
    self.assertEqual((step['step'], step['recompute']), (0, False))
    self.assertEqual(cases[0].seconds()['step'], 1)
    learning = learning[1]
    # The half learns from what the other half, which starts alike, sampled.
    np.testing.assert_array_equal(learning['tokens'], rollout.tokens)
    np.testing.assert_allclose(
      learning['reward'],
      np.mean(rollout.tokens[:, _TINY.prompt_len :] == 7, axis=1),
      rtol=1e-6,
    )

  def test_peer_that_does_not_start_is_left_out_with_a_line(self):
    with mock.patch.object(timing, 'tell') as tell:
      rows = self._measure(
        peers={'trl': bench_ours_test.process(1)}, variants='hmpo_jax'
      )
    self.assertEqual({row.variant for row in rows}, {'hmpo_jax'})
    tell.assert_called_once()
    self.assertIn('trl is left out (', tell.call_args.args[0])
    self.assertIn('that of trl 1', tell.call_args.args[0])

  def test_processes_are_left_out_on_an_accelerator(self):
    errors = io.StringIO()
    with mock.patch.object(limits, 'is_cpu', lambda: False):
      with contextlib.redirect_stderr(errors):
        rows = self._measure(peers={'trl': self._python})
    self.assertEqual(
      {row.variant for row in rows}, {'hmpo_jax', 'hmpo_jax, recompute'}
    )
    self.assertEqual(
      errors.getvalue(),
      'bench: left out, as they run on the CPU alone: hmpo_jax, trl\n',
    )


if __name__ == '__main__':
  absltest.main()
