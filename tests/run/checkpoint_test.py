"""What is restored is what was saved, bit for bit."""

import errno
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple
from unittest import mock

from absl.testing import absltest
import chex
import jax
import jax.numpy as jnp

from hmpo_jax.run import checkpoint

_SAVE_AND_RESTORE = """
import pathlib, sys
import jax.numpy as jnp
from hmpo_jax.run import checkpoint
folder, tree = pathlib.Path(sys.argv[1]), checkpoint.place({'w': jnp.ones(3)})
with checkpoint.Checkpointer(folder / 'checkpoints', 1, print) as saver:
  saver.save(1, tree, {}, 0.)
  saver.save(2, tree, {}, 0.)
with checkpoint.Checkpointer(folder / 'checkpoints', 1, print) as saver:
  assert saver.restore(tree).step == 2
checkpoint.save_tree(folder / 'tree', tree)
assert checkpoint.restore_tree(folder / 'tree', tree, print) is not None
"""


class _State(NamedTuple):
  params: dict
  key: jax.Array
  moments: tuple
  empty: tuple


def _state(seed):
  key = jax.random.key(seed)
  return _State(
    params={
      'w': jax.random.normal(key, (3, 4)),
      'half': jax.random.normal(key, (5,), jnp.bfloat16),
    },
    key=key,
    moments=(jnp.int32(seed), jnp.array([True, False]), jnp.float32(jnp.nan)),
    empty=(),
  )


class CheckpointTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.notes = []

  def _assert_equal(self, first, second):
    self.assertEqual(jax.tree.structure(first), jax.tree.structure(second))
    data = lambda state: state._replace(key=jax.random.key_data(state.key))
    chex.assert_trees_all_equal(data(first), data(second), strict=True)

  def _checkpoints(self, keep=2):
    return checkpoint.Checkpointer(self.folder, keep, self.notes.append)

  def _save(self, *steps, scores=None):
    with self._checkpoints() as saver:
      for step in steps:
        score = scores[step] if scores else step
        saver.save(step, _state(step), {'tokens': 10 * step}, score)

  def test_restores_the_newest_of_those_kept(self):
    with self._checkpoints() as saver:
      self.assertIsNone(saver.restore(_state(0)))
      self.assertIsNone(saver.latest_step())
    self._save(1, 2, 3)
    with self._checkpoints() as saver:
      step, state, extra = saver.restore(_state(0))
      self.assertEqual((step, extra), (3, {'tokens': 30}))
      self._assert_equal(state, _state(3))
      self.assertEqual(saver.steps(), [2, 3])
      self.assertEqual(saver.latest_step(), 3)
    self.assertEmpty(self.notes)
    self.assertCountEqual(
      (file.name for file in self.folder.iterdir()),
      ['2', '3', '2.sha256.json', '3.sha256.json'],
    )

  def test_keeps_the_best_beside_the_newest(self):
    self._save(1, 2, 3, 4, scores={1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3})
    with self._checkpoints() as saver:
      self.assertEqual(saver.steps(), [2, 3, 4])

  def test_next_process_knows_the_best_and_drops_the_others(self):
    scores = {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.4, 6: None, 7: 0.1}
    for steps in ((1, 2, 3), (4, 5), (6,), (7,)):
      self._save(*steps, scores=scores)
    with self._checkpoints() as saver:
      self.assertEqual(saver.steps(), [2, 6, 7])

  def test_what_was_not_scored_is_never_the_best(self):
    self._save(1, 2, 3, 4, scores={1: 0.0, 2: None, 3: None, 4: None})
    with self._checkpoints() as saver:
      self.assertEqual(saver.steps(), [1, 3, 4])

  def test_donated_state_is_saved_whole(self):
    advance = jax.jit(
      lambda state: state._replace(
        params=jax.tree.map(lambda x: x + 1, state.params)
      ),
      donate_argnums=0,
    )
    state = checkpoint.place(_state(1))
    with self._checkpoints() as saver:
      saver.save(1, state, {}, 0.0)
      advance(state)
    with self._checkpoints() as saver:
      self._assert_equal(saver.restore(_state(0)).state, _state(1))

  def test_restored_state_compiles_nothing_again(self):
    double = jax.jit(lambda state: jax.tree.map(lambda x: x + x, state.params))
    state = checkpoint.place(_state(1))
    double(state)
    self._save(1)
    with self._checkpoints() as saver:
      double(saver.restore(state).state)
    self.assertEqual(double._cache_size(), 1)

  def test_says_nothing_to_a_terminal(self):
    result = subprocess.run(
      [sys.executable, '-c', _SAVE_AND_RESTORE, str(self.folder)],
      cwd=pathlib.Path(__file__).parents[2],
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(
      (result.returncode, result.stdout, result.stderr), (0, '', '')
    )

  def test_every_damage_is_named_and_the_checkpoint_before_is_used(self):
    self._save(1, 2)
    pristine = {
      path.relative_to(self.folder): path.read_bytes()
      for path in self.folder.rglob('*')
      if path.is_file()
    }
    damages = {
      'flipped': lambda data: data[:-1] + bytes([data[-1] ^ 1]),
      'truncated': lambda data: data[: len(data) // 2],
    }
    of_newest = [path for path in pristine if path.parts[0][0] == '2']
    self.assertGreater(len(of_newest), 8)
    for path in of_newest:
      for damage in damages.values():
        if not pristine[path]:
          continue
        (self.folder / path).write_bytes(damage(pristine[path]))
        with self._checkpoints() as saver:
          self.assertEqual(saver.restore(_state(0)).step, 1, path)
        self.assertRegex(
          self.notes.pop(),
          r'checkpoint .*/2 (is damaged in|has '
          'an unreadable seal)',
        )
        self.assertTrue((self.folder / 'damaged').is_dir())
        self._reset(pristine)

  def test_checkpoint_without_seal_was_not_finished(self):
    self._save(1, 2)
    (self.folder / '2.sha256.json').unlink()
    (self.folder / '3.orbax-checkpoint-tmp').mkdir()
    with self._checkpoints() as saver:
      self.assertEqual(saver.restore(_state(0)).step, 1)
    self.assertLen(self.notes, 2)
    self.assertCountEqual(
      (file.name for file in (self.folder / 'damaged').iterdir()),
      ['2', '3.orbax-checkpoint-tmp'],
    )

  def test_what_is_no_step_stays_and_counts_for_nothing(self):
    others = ('\u00b2', '007', '9 (copy)', 'notes')
    for name in others:
      (self.folder / name).mkdir(parents=True)
    seal = self.folder / 'mine.sha256.json'
    seal.touch()
    self._save(1, 2)
    (self.folder / '3').mkdir()  # without a seal
    self.assertEqual(checkpoint.newest_step(self.folder), 2)
    self.assertEqual(checkpoint.newest_step(self.folder / 'nowhere'), 0)
    with self._checkpoints() as saver:
      self.assertEqual(saver.restore(_state(0)).step, 2)
    for name in others:
      self.assertTrue((self.folder / name).is_dir(), name)
    self.assertTrue(seal.exists())

  def test_damaged_checkpoints_are_never_overwritten(self):
    for _ in range(3):
      self._save(7)
      (self.folder / '7.sha256.json').unlink()
    with self._checkpoints() as saver:
      self.assertIsNone(saver.restore(_state(0)))
    self.assertCountEqual(
      (file.name for file in (self.folder / 'damaged').iterdir()),
      ['7', '7-1', '7-2'],
    )

  def _reset(self, content):
    shutil.rmtree(self.folder)
    for path, data in content.items():
      (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
      (self.folder / path).write_bytes(data)

  def test_disk_without_room_is_found_before_anything_is_written(self):
    room = mock.Mock(free=1000)
    with mock.patch.object(shutil, 'disk_usage', lambda _: room):
      with self._checkpoints() as saver:
        with self.assertRaisesRegex(
          checkpoint.SaveError, '1,000 bytes free'
        ) as raised:
          saver.save(1, _state(1), {}, 0.0)
        self.assertTrue(checkpoint.is_full(raised.exception))
      with self.assertRaisesRegex(checkpoint.SaveError, '1,000 bytes free'):
        checkpoint.save_tree(self.folder / 'tree', _state(1).params)
    self.assertEmpty(list(self.folder.iterdir()))

  def test_disk_without_room_is_told_from_other_faults(self):
    full = checkpoint.SaveError('checkpoint not written: ...')
    full.__cause__ = ValueError(
      'RESOURCE_EXHAUSTED: Error writing "/x": No space left on device [...]'
    )
    quota = OSError(errno.EDQUOT, 'quota')
    for error in (full, quota, OSError(errno.ENOSPC, 'full')):
      self.assertTrue(checkpoint.is_full(error), error)
    denied = checkpoint.SaveError('checkpoint not written: ...')
    denied.__cause__ = OSError(errno.EACCES, 'Permission denied')
    for error in (denied, OSError(errno.EROFS, 'read only'), None):
      self.assertFalse(checkpoint.is_full(error), error)

  def test_what_failed_is_told_whatever_becomes_of_the_scratch(self):
    with (
      mock.patch.object(
        checkpoint.ocp, 'StandardCheckpointer', side_effect=OSError('no room')
      ),
      mock.patch.object(shutil.os, 'rmdir', side_effect=OSError(39, 'd')),
      self.assertRaisesRegex(checkpoint.SaveError, 'no room'),
    ):
      checkpoint.save_tree(self.folder / 'tree', _state(1).params)

  def test_half_written_tree_is_not_used(self):
    tree = _state(1).params
    folder = self.folder / 'digest'
    checkpoint.save_tree(folder, tree)
    (folder / '.sha256.json').unlink()  # the last file to be written
    self.assertIsNone(checkpoint.restore_tree(folder, tree, self.notes.append))
    self.assertIn('was not finished', self.notes[0])
    checkpoint.save_tree(folder, tree)
    chex.assert_trees_all_equal(
      checkpoint.restore_tree(folder, tree, self.notes.append), tree
    )

  def test_tree_is_whole_or_absent(self):
    tree, like = _state(1).params, jax.eval_shape(lambda: _state(1).params)
    folder = self.folder / 'cache' / 'digest'
    restore = lambda: checkpoint.restore_tree(folder, like, self.notes.append)
    self.assertIsNone(restore())
    checkpoint.save_tree(folder, tree)
    chex.assert_trees_all_equal(restore(), tree, strict=True)
    # A second writer of the same tree leaves the first one's in place.
    checkpoint.save_tree(folder, tree)
    self.assertEqual(
      [file.name for file in folder.parent.iterdir()], ['digest']
    )
    self.assertFalse((folder / 'tree').exists())
    (folder / '_METADATA').write_text('{}')
    self.assertIsNone(restore())
    self.assertIn('is damaged in _METADATA', self.notes[0])


if __name__ == '__main__':
  absltest.main()
