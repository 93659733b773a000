"""Steps recomputed: verify finds one flipped bit, replay the first NaN."""

import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
import chex
import jax
import numpy as np
import optax

from hmpo_jax import config as config_lib
from hmpo_jax.run import checkpoint
from hmpo_jax.run import environment
from hmpo_jax.run import records as run_records
from hmpo_jax.run import rerun
from hmpo_jax.run import trainer
from hmpo_jax.training import programs
from tests import small


class RerunTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def _train(self, **overrides):
    trainer.train(
      small.config(
        **(
          {
            'num_steps': 4,
            'checkpoint__every': 2,
            'eval__every': 3,
            'warm_start__num_steps': 3,
            'optim__decay': 0.5,
            'optim__decay_steps': 4.0,
          }
          | overrides
        )
      ),
      self.folder,
    )

  def _verify(self):
    with rerun.opened(self.folder, self.fail) as recorded:
      return recorded.verify()

  def test_run_is_bit_equal_between_its_checkpoints(self):
    self._train()
    check = self._verify()
    self.assertEqual((check.start, check.end, check.difference), (2, 4, ''))
    self.assertGreater(check.num_arrays, 20)

  def test_run_that_was_made_longer_is_verified_over_its_old_end(self):
    overrides = {'checkpoint__every': 4, 'mechanism__every': 5}
    self._train(num_steps=2, **overrides)
    self._train(num_steps=4, **overrides)
    with mock.patch.object(checkpoint.Checkpointer, 'steps', lambda saver: [4]):
      check = self._verify()
    self.assertEqual((check.start, check.end, check.difference), (0, 4, ''))

  def test_one_checkpoint_is_verified_from_the_warm_start(self):
    self._train(checkpoint__every=4, optim__name='muon_clip')
    check = self._verify()
    self.assertEqual((check.start, check.end, check.difference), (0, 4, ''))

  def test_first_array_that_differs_is_named(self):
    flip = lambda x: np.nextafter(x, 2, dtype=x.dtype)
    save = checkpoint.Checkpointer.save

    def save_flipped(saver, step, state, *args):
      if step == 4:
        params = jax.device_get(state.params)
        params['layers']['mlp']['up']['kernel'] = flip(
          params['layers']['mlp']['up']['kernel']
        )
        state = state._replace(params=params)
      save(saver, step, state, *args)

    with mock.patch.object(checkpoint.Checkpointer, 'save', save_flipped):
      self._train()
    self.assertStartsWith(
      self._verify().difference,
      'params/layers/mlp/up/kernel: largest difference',
    )

  def test_record_that_differs_is_named(self):
    self._train()
    file = self.folder / run_records.METRICS
    lines = file.read_text('utf-8').splitlines()
    record = json.loads(lines[2])
    record['reward/mean'] += 1e-7
    lines[2] = json.dumps(record)
    file.write_text('\n'.join([*lines, '']), 'utf-8')
    self.assertStartsWith(self._verify().difference, 'reward/mean of step 3')

  def test_replay_names_the_step_and_what_was_first(self):
    collect = programs.Programs.collect

    def spoilt(self, state):
      rollout, scores = collect(self, state)
      if int(state.step) == 2:
        scores = scores._replace(reward=scores.reward.at[5].set(np.nan))
      return rollout, scores

    def step(self, state, measure, hparams):
      return programs._learn(
        self.static, state, hparams, *self.collect(state), measure
      )

    with mock.patch.object(programs.Programs, 'collect', spoilt):
      with mock.patch.object(programs.Programs, 'step', step):
        self._train()
        (fault,) = map(
          json.loads,
          (self.folder / run_records.FAULTS).read_text('utf-8').splitlines(),
        )
        self.assertEqual(fault['step'], 3)
        self.assertGreater(fault['skipped']['reward'], 0)
        self.assertLen(fault['key'], 2)
        with rerun.opened(self.folder, self.fail) as recorded:
          first, *rest = recorded.suspects(3)
          self.assertEmpty(list(recorded.suspects(4)))
    self.assertEqual(
      first,
      rerun.Suspect(place='rollout', name='reward', num_bad=1, first=(5,)),
    )
    self.assertEqual(rest[0].name, 'advantages')
    self.assertIn('loss', [suspect.name for suspect in rest])

  def test_updates_after_the_last_checkpoint_are_those_of_a_longer_run(self):
    self._train(num_steps=2)
    with rerun.opened(self.folder, self.fail) as recorded:
      first, second = recorded.updates(2)
      moved = [np.asarray(recorded.log_ratio(start)) for start in first]
    self.assertLen(first, 4)
    # The step after it took no array away.
    self.assertTrue(np.isfinite(optax.tree.norm(first[0].learned.params)))
    self.folder = self.folder / 'longer'
    self._train(num_steps=3, checkpoint__every=3)
    with rerun.opened(self.folder, self.fail) as recorded:
      ((again, *_),) = recorded.updates()
    chex.assert_trees_all_equal(again.learned, second[0].learned)
    chex.assert_trees_all_equal(again.batch, second[0].batch)
    self._assert_moved_as(moved, first, run_records.read(self.folder)[2])

  def _assert_moved_as(self, moved, starts, record):
    """That log-ratios of the updates of a step have the spread it recorded."""
    self.assertFalse(moved[0].any())
    mask = np.asarray(starts[-1].batch.mask)
    self.assertFalse(moved[-1][~mask].any())
    variance = [
      np.var(row[tokens], dtype=np.float64)
      for row, tokens in zip(moved[-1], mask)
      if tokens.any()
    ]
    np.testing.assert_allclose(
      np.sqrt(np.mean(variance)),
      record['log_ratio/last_update_sigma'],
      rtol=1e-4,
    )

  def test_what_can_not_be_done_again(self):
    with self.assertRaisesRegex(config_lib.ConfigError, 'holds no run'):
      with rerun.opened(self.folder, self.fail):
        pass
    self._train(num_steps=1)
    with rerun.opened(self.folder, self.fail) as recorded:
      for step in (0, 2):
        with self.assertRaisesRegex(config_lib.ConfigError, 'from 1 to 1'):
          list(recorded.suspects(step))
      with self.assertRaisesRegex(config_lib.ConfigError, 'another process'):
        with rerun.opened(self.folder, self.fail):
          pass
    with mock.patch.object(environment, 'versions', lambda: {'jax': '0'}):
      with self.assertRaisesRegex(config_lib.ConfigError, r'versions\.jax'):
        with rerun.opened(self.folder, self.fail):
          pass

  def test_endless_learning_rate_stops_with_sound_checkpoints(self):
    with self.assertRaisesRegex(trainer.NumericalStop, 'in a row'):
      self._train(optim__learning_rate=1e30, train__max_skips=10, num_steps=9)
    record = run_records.read(self.folder)[-1]
    self.assertEqual(record['skipped/update'], 4)
    self.assertEqual(record['step'], 3)
    with rerun.opened(self.folder, self.fail) as recorded:
      self.assertEqual(next(recorded.suspects(3)).name, 'update_norm')


if __name__ == '__main__':
  absltest.main()
