"""Runs in folders: what they hold, that they resume, what they refuse."""

import contextlib
import errno
import io
import json
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np

from hmpo_jax import base
from hmpo_jax import config as config_lib
from hmpo_jax.run import checkpoint
from hmpo_jax.run import records as run_records
from hmpo_jax.run import summary as summary_lib
from hmpo_jax.run import trainer
from hmpo_jax.training import programs
from tests import small


class _Killed(Exception):
  """Stands for a process that ends in the middle of a step."""


def _config(**overrides):
  return small.config(
    **(
      {
        'num_steps': 5,
        'eval__every': 2,
        'checkpoint__every': 2,
        'warm_start__num_steps': 3,
      }
      | overrides
    )
  )


class _FolderTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def _killed_at(self, step, workdir, **overrides):
    """Runs until the record of a step should be written."""
    write = run_records.Writer.write

    def write_or_die(writer, at, *args):
      if at == step:
        raise _Killed
      write(writer, at, *args)

    with mock.patch.object(run_records.Writer, 'write', write_or_die):
      with self.assertRaises(_Killed):
        trainer.train(_config(**overrides), workdir)


class TrainerTest(_FolderTest):
  def test_resumed_run_equals_undisturbed_run(self):
    summary = trainer.train(_config(), self.folder / 'whole')
    for step in (1, 4):
      workdir = self.folder / f'killed_{step}'
      self._killed_at(step, workdir)
      self.assertEqual(trainer.train(_config(), workdir), summary)
      for name in ('metrics.jsonl', 'metrics.csv'):
        self.assertEqual(
          (workdir / name).read_bytes(),
          (self.folder / 'whole' / name).read_bytes(),
        )

  def test_held_out_values_stay_until_the_next_evaluation(self):
    trainer.train(_config(), self.folder)
    steps = [record['eval/step'] for record in run_records.read(self.folder)]
    self.assertEqual(steps, [0, 2, 2, 4, 5])

  def _scores(self):
    """Scores of the checkpoints that are made from now on, by their steps."""
    scores = {}
    save = checkpoint.Checkpointer.save

    def save_and_tell(saver, step, state, extra, score):
      scores[step] = score
      save(saver, step, state, extra, score)

    self.enterContext(
      mock.patch.object(checkpoint.Checkpointer, 'save', save_and_tell)
    )
    return scores

  def test_what_can_become_the_best_is_evaluated(self):
    scores = self._scores()
    trainer.train(_config(checkpoint__every=3), self.folder / 'run')
    self.assertEqual(list(scores), [3, 5])
    records = run_records.read(self.folder / 'run')
    # No record knows of it.
    self.assertEqual([r['eval/step'] for r in records], [0, 2, 2, 4, 5])
    trainer.train(_config(eval__every=1), self.folder / 'every')
    every = run_records.read(self.folder / 'every')
    self.assertNotEqual(every[2]['eval/reward'], every[1]['eval/reward'])
    self.assertEqual(
      [scores[3], scores[5]],
      [every[step - 1]['eval/reward'] for step in (3, 5)],
    )

  def test_interrupted_run_scores_no_policy_that_it_has_not_evaluated(self):
    scores = self._scores()
    with mock.patch.object(
      trainer.interruption_lib.Interruption,
      'is_asked',
      side_effect=[False, True],
    ):
      with self.assertRaises(base.Interrupted):
        trainer.train(_config(), self.folder)
    self.assertEqual(scores, {1: None})
    trainer.train(_config(), self.folder)
    self.assertEqual(
      [step for step, score in scores.items() if score is not None], [2, 4, 5]
    )

  def _lengthen(self, workdir, **overrides):
    """Runs 3 steps and then 6, and the longer run in a folder beside it."""
    longer = _config(num_steps=6, **overrides)
    trainer.train(_config(num_steps=3, **overrides), workdir)
    summary = trainer.train(longer, workdir)
    return summary, trainer.train(longer, workdir.with_name('undisturbed'))

  def _final_state(self, workdir, **overrides):
    config = _config(num_steps=6, **overrides)
    made = programs.Programs(config)
    with checkpoint.Checkpointer(
      workdir / 'checkpoints', 2, self.fail
    ) as saver:
      like = made.first_state(made.warm_params())
      return saver.restore(like, 6).state

  def test_run_that_is_made_longer_is_the_longer_run(self):
    # What is carried from step to step, and the end of step 3 in records.
    overrides = {
      'mechanism__every': 2,
      'rollout__staleness': 1,
      'optim__weight_decay': 0.1,
    }
    summary, longer = self._lengthen(self.folder / 'grown', **overrides)
    self.assertEqual(summary['steps'], 6)
    # Of all steps that were measured, the old end among them.
    rest = lambda found: {
      name: value
      for name, value in found.items()
      if not name.startswith('cosine')
    }
    self.assertEqual(rest(summary), rest(longer))
    states = [
      self._final_state(self.folder / name, **overrides)
      for name in ('grown', 'undisturbed')
    ]
    for leaf, other in zip(*map(jax.tree.leaves, states), strict=True):
      if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf, other = jax.random.key_data(leaf), jax.random.key_data(other)
      self.assertEqual(np.asarray(leaf).tobytes(), np.asarray(other).tobytes())
    grown, undisturbed = (
      run_records.read(self.folder / name) for name in ('grown', 'undisturbed')
    )
    other = [
      {name for name in record if record[name] != there[name]}
      for record, there in zip(grown, undisturbed, strict=True)
    ]
    self.assertEqual([r['eval/step'] for r in grown], [0, 2, 3, 4, 4, 6])
    self.assertEqual([r['mechanism/step'] for r in grown], [1, 2, 3, 4, 4, 6])
    for step, names in enumerate(other, 1):
      self.assertEqual(bool(names), step == 3)
      for name in names:
        self.assertTrue(name.startswith(('eval', 'mechanism/')), name)

  def test_run_killed_while_it_grows_goes_on(self):
    *_, longer = self._lengthen(self.folder / 'whole')
    for step in (4, 5):
      workdir = self.folder / f'killed_{step}'
      trainer.train(_config(num_steps=3), workdir)
      self._killed_at(step, workdir, num_steps=6)
      self.assertFalse((workdir / 'summary.json').exists())
      self.assertEqual(trainer.train(_config(num_steps=6), workdir), longer)
      for name in ('metrics.jsonl', 'metrics.csv', 'summary.json'):
        self.assertEqual(
          (workdir / name).read_bytes(),
          (self.folder / 'whole' / name).read_bytes(),
        )

  def test_run_that_can_not_go_on_stays_as_short_as_it_is(self):
    trainer.train(_config(num_steps=3), self.folder)
    file = self.folder / run_records.METRICS
    file.write_text(file.read_text('utf-8').split('\n')[0] + '\n', 'utf-8')
    names = ('config.json', 'summary.json', run_records.METRICS)
    before = [(self.folder / name).read_bytes() for name in names]
    with self.assertRaisesRegex(config_lib.ConfigError, 'holds 1 of the 3'):
      trainer.train(_config(num_steps=6), self.folder)
    self.assertEqual(
      [(self.folder / name).read_bytes() for name in names], before
    )

  def test_run_killed_before_it_grows_ends_where_it_did(self):
    summary = trainer.train(_config(num_steps=3), self.folder)
    (self.folder / 'summary.json').unlink()
    self.assertEqual(trainer.train(_config(num_steps=3), self.folder), summary)

  def test_mechanism_has_steps_of_its_own(self):
    summary = trainer.train(_config(mechanism__every=3), self.folder)
    records = run_records.read(self.folder)
    steps = [record['mechanism/step'] for record in records]
    self.assertEqual(steps, [1, 1, 3, 3, 5])
    cosines = [records[i]['mechanism/cosine'] for i in (0, 2, 4)]
    self.assertLen(set(cosines), 3)
    self.assertAlmostEqual(summary['cosine'], sum(cosines) / 3, delta=1e-9)

  def test_run_without_comparisons_has_none_in_its_records(self):
    summary = trainer.train(
      _config(optim__qk_clip='weights', mechanism__every=0), self.folder
    )
    for record in run_records.read(self.folder):
      for name in record:
        self.assertNotStartsWith(name, 'mechanism/')
        self.assertNotStartsWith(name, 'qk/clip_drift')
    self.assertNotIn('cosine', summary)
    self.assertNotIn(
      'cosine of gradients', str(summary_lib.rows(summary, self.folder))
    )

  def test_seeds_share_a_warm_start_folder_without_sharing_parameters(self):
    cache = self.folder / 'cache'
    first, again, other = (
      trainer.train(
        _config(seed=seed, num_steps=1, warm_start__folder=str(cache)),
        self.folder / name,
      )
      for name, seed in (('first', 0), ('again', 0), ('other', 1))
    )
    self.assertLen(list(cache.iterdir()), 2)
    self.assertEqual(first, again)
    self.assertNotEqual(first['reward_last_10'], other['reward_last_10'])

  def test_warns_when_every_mean_is_the_same(self):
    notes = []
    still = _config(num_steps=6, optim__learning_rate=0.0)
    with mock.patch.object(
      trainer.progress_lib.Progress, 'note', lambda _, text: notes.append(text)
    ):
      trainer.train(still, self.folder)
    self.assertLen(notes, 1)
    self.assertIn('every mean is the same algorithm', notes[0])

  def test_config_file_is_plain_json(self):
    trainer.train(_config(num_steps=1), self.folder)
    refuse = lambda constant: self.fail(f'{constant} is not JSON')
    saved = json.loads(
      (self.folder / 'config.json').read_text('utf-8'), parse_constant=refuse
    )
    self.assertEqual(saved['config']['train']['max_grad_norm'], 'inf')
    self.assertContainsSubset({'commit', 'versions', 'device'}, saved)

  def test_too_few_held_out_prompts_is_bad_input(self):
    with self.assertRaisesRegex(config_lib.ConfigError, 'eval.num_prompts'):
      trainer.train(
        _config(task__num_digits=2, eval__num_prompts=512), self.folder
      )


class FaultyFolderTest(_FolderTest):
  def test_addresses_of_storage_are_refused(self):
    with self.assertRaisesRegex(config_lib.ConfigError, 'gs://bucket.*no path'):
      trainer.train(_config(), 'gs://bucket/run')
    config = _config(warm_start__folder='gs://bucket/warm')
    with self.assertRaisesRegex(config_lib.ConfigError, 'gs://bucket.*no path'):
      trainer.train(config, self.folder / 'run')

  def test_folder_of_another_configuration_is_refused(self):
    trainer.train(_config(num_steps=1), self.folder)
    before = (self.folder / 'config.json').read_bytes()
    with self.assertRaisesRegex(
      config_lib.ConfigError, r'config\.loss\.p: -1\.0 there, 0\.5 here'
    ):
      trainer.train(_config(num_steps=1, loss__p=0.5), self.folder)
    self.assertEqual((self.folder / 'config.json').read_bytes(), before)

  def test_damaged_summary_is_made_again(self):
    summary = trainer.train(_config(), self.folder)
    for text in ('', '{"steps": 5}', '[]'):
      (self.folder / 'summary.json').write_text(text, 'utf-8')
      self.assertEqual(trainer.train(_config(), self.folder), summary)

  def test_records_without_their_checkpoints_are_kept_and_said(self):
    config = _config(num_steps=4)
    trainer.train(config, self.folder)
    before = (self.folder / 'metrics.jsonl').read_bytes()
    for again in ('earlier-1', 'earlier-2'):
      shutil.rmtree(self.folder / 'checkpoints')
      (self.folder / 'summary.json').unlink()
      told = self._told(config)
      self.assertIn(
        'holds records up to step 4 but none of their checkpoints: starts '
        f'over from step 1; the records are kept in {self.folder / again}\n',
        told,
      )
      for name in ('metrics.jsonl', 'metrics.csv', 'timing.jsonl'):
        self.assertTrue((self.folder / again / name).exists(), name)
      self.assertEqual(
        (self.folder / again / 'metrics.jsonl').read_bytes(), before
      )
      self.assertEqual((self.folder / 'metrics.jsonl').read_bytes(), before)

  def test_kill_before_the_first_checkpoint_is_said_and_leaves_nothing(self):
    self._killed_at(2, self.folder)
    self.assertIn(
      'records up to step 1 and no checkpoint yet: starts over',
      self._told(_config()),
    )
    self.assertEmpty(list(self.folder.glob('earlier*')))
    self.assertNotIn('starts over', self._told(_config()))

  def _told(self, config):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
      trainer.train(config, self.folder)
    return errors.getvalue()

  def test_run_whose_last_checkpoint_fails_has_not_finished(self):
    seal = checkpoint.Checkpointer._seal

    def fail_at_the_end(saver, step):
      if step == 5:
        raise OSError(errno.EACCES, 'denied')
      seal(saver, step)

    with mock.patch.object(checkpoint.Checkpointer, '_seal', fail_at_the_end):
      with self.assertRaisesRegex(checkpoint.SaveError, 'denied'):
        trainer.train(_config(), self.folder)
    self.assertFalse((self.folder / 'summary.json').exists())
    self.assertEqual(trainer.train(_config(), self.folder)['steps'], 5)

  def test_damaged_metrics_are_refused_and_stay(self):
    trainer.train(_config(), self.folder)
    (self.folder / 'summary.json').unlink()
    file = self.folder / run_records.METRICS
    lines = file.read_text('utf-8').splitlines(keepends=True)
    for damage in (
      lines[1:],
      lines[:1] + lines[2:],
      lines[:3],
      [*lines[:2], '{"st\n', *lines[2:]],
      [],
    ):
      file.write_text(''.join(damage), 'utf-8')
      with self.assertRaisesRegex(config_lib.ConfigError, r'metrics\.jsonl'):
        trainer.train(_config(), self.folder)
      self.assertEqual(file.read_text('utf-8'), ''.join(damage))


if __name__ == '__main__':
  absltest.main()
