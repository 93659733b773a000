"""The suite of many runs: what it times; no time is asserted."""

import contextlib
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from experiments.bench import many_runs
from experiments.bench import ours
from experiments.bench import peers
from experiments.bench import timing
from hmpo_jax.training import learner
from tests import small
from tests.experiments.bench import ours_test as bench_ours_test

_TINY = bench_ours_test.TINY


def _options(**options):
  return timing.Options([_TINY], 2, small.config(), **options)


def _train_step(static, state, hparams, measure):
  """Learns nothing: the real step takes long to compile."""
  del static, measure
  return state._replace(step=state.step + 1), {'p': hparams.exponent.start}


class ManyRunsTest(absltest.TestCase):
  def test_rows_of_one_program_and_of_processes(self):
    python = bench_ours_test.process(_TINY.num_params)
    with mock.patch.object(learner, 'train_step', _train_step):
      with mock.patch.object(many_runs, '_COUNTS', (1, 2)):
        with mock.patch.object(many_runs, '_IN_PROCESSES', 2):
          with mock.patch.object(many_runs.own_peer, 'cores', lambda: [0, 1]):
            with mock.patch.object(many_runs.sys, 'executable', python):
              rows = many_runs.measure(_options())
    self.assertEqual(
      [(row.shape, row.variant, row.mode) for row in rows],
      [
        ('tiny, 1 run', 'one run', '1 run'),
        ('tiny, 1 run', 'map', '1 run'),
        ('tiny, 1 run', 'vmap', '1 run'),
        ('tiny, 2 runs', 'one run', '1 run'),
        ('tiny, 2 runs', 'map', '2 runs'),
        ('tiny, 2 runs', 'vmap', '2 runs'),
        ('tiny, 2 runs', 'spread', '2 runs'),
        ('tiny, 2 runs', 'processes', '2 runs'),
      ],
    )
    self.assertIsNone(rows[-1].compile_s)
    for row in rows:
      count = int(row.mode[0])
      self.assertAlmostEqual(
        row.tokens_per_s,
        count * 30 / row.ms * 1e3,
        delta=1e-2 * row.tokens_per_s,
      )

  def test_each_process_has_its_share_and_its_core(self):
    asked = []

    @contextlib.contextmanager
    def worker(peer, python, workload, core):
      del python
      self.assertEqual((peer, workload), (peers.OWN, _TINY))
      yield lambda: asked.append(core)

    with mock.patch.object(peers, 'worker', worker):
      with mock.patch.object(many_runs.own_peer, 'cores', lambda: [3, 5]):
        with contextlib.ExitStack() as stack:
          (case,) = many_runs._in_processes(_TINY, stack)
          case.seconds(1)
    self.assertEqual(sorted(asked), 4 * [3] + 4 * [5])
    self.assertFalse(case.is_here)

  def test_runs_that_do_not_divide_are_told(self):
    with mock.patch.object(many_runs.own_peer, 'cores', lambda: [0, 1, 2]):
      with mock.patch.object(timing, 'tell') as tell:
        with contextlib.ExitStack() as stack:
          self.assertEmpty(list(many_runs._in_processes(_TINY, stack)))
    tell.assert_called_once()

  def test_runs_differ_and_each_is_a_run(self):
    with ours.configured(_TINY) as config:
      start = ours.start(config)
      states, hparams = many_runs.stacked(start, 3)
    np.testing.assert_array_equal(hparams.exponent.start, [-1, 0, 1])
    np.testing.assert_array_equal(states.controls.exponent.p, [-1, 0, 1])
    keys = jax.random.key_data(states.key)
    self.assertLen({tuple(key) for key in np.asarray(keys)}, 3)
    embed = states.params['embed']
    self.assertFalse(np.array_equal(embed[0], embed[1]))
    one = lambda tree: jax.tree.map(lambda x: x[1], tree)
    jax.tree.map(
      lambda x, y: self.assertEqual((x.shape, x.dtype), (y.shape, y.dtype)),
      (one(states), one(hparams)),
      (start.state, start.hparams),
    )


if __name__ == '__main__':
  absltest.main()
