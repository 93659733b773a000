"""What is restored is what was saved, bit for bit."""

import pathlib
import tempfile
from typing import NamedTuple

from absl.testing import absltest
import chex
import jax
import jax.numpy as jnp

from hmpo_jax import checkpoint


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
          'half': jax.random.normal(key, (5,), jnp.bfloat16)
      },
      key=key,
      moments=(jnp.int32(seed), jnp.array([True, False]), jnp.float32(jnp.nan)),
      empty=())


class CheckpointTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()  # pylint: disable=consider-using-with
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)

  def _assert_equal(self, first, second):
    self.assertEqual(jax.tree.structure(first), jax.tree.structure(second))
    data = lambda state: state._replace(key=jax.random.key_data(state.key))
    chex.assert_trees_all_equal(data(first), data(second), strict=True)

  def test_restores_the_newest_of_those_kept(self):
    with checkpoint.Checkpointer(self.folder, keep=2) as saver:
      self.assertIsNone(saver.latest_step())
      for step in (1, 2, 3):
        saver.save(step, _state(step), {'tokens': 10 * step})
    with checkpoint.Checkpointer(self.folder, keep=2) as saver:
      self.assertEqual(saver.latest_step(), 3)
      state, extra = saver.restore(3, _state(0))
      self._assert_equal(state, _state(3))
      self.assertEqual(extra, {'tokens': 30})
    self.assertFalse((self.folder / '1').exists())

  def test_donated_state_is_saved_whole(self):
    advance = jax.jit(
        lambda state: state._replace(
            params=jax.tree.map(lambda x: x + 1, state.params)),
        donate_argnums=0)
    state = checkpoint.place(_state(1))
    with checkpoint.Checkpointer(self.folder, keep=1) as saver:
      saver.save(1, state, {})
      advance(state)
    with checkpoint.Checkpointer(self.folder, keep=1) as saver:
      self._assert_equal(saver.restore(1, _state(0))[0], _state(1))

  def test_restored_state_compiles_nothing_again(self):
    double = jax.jit(lambda state: jax.tree.map(lambda x: x + x, state.params))
    state = checkpoint.place(_state(1))
    double(state)
    with checkpoint.Checkpointer(self.folder, keep=1) as saver:
      saver.save(1, state, {})
    with checkpoint.Checkpointer(self.folder, keep=1) as saver:
      double(saver.restore(1, state)[0])
    self.assertEqual(double._cache_size(), 1)  # pylint: disable=protected-access

  def test_tree_is_whole_or_absent(self):
    tree, like = _state(1).params, jax.eval_shape(lambda: _state(1).params)
    folder = self.folder / 'cache' / 'digest'
    self.assertIsNone(checkpoint.restore_tree(folder, like))
    checkpoint.save_tree(folder, tree)
    chex.assert_trees_all_equal(
        checkpoint.restore_tree(folder, like), tree, strict=True)
    # A second writer of the same tree leaves the first one's in place.
    checkpoint.save_tree(folder, tree)
    self.assertEqual([file.name for file in folder.parent.iterdir()],
                     ['digest'])
    self.assertFalse((folder / 'tree').exists())
    chex.assert_trees_all_equal(checkpoint.restore_tree(folder, like), tree)


if __name__ == '__main__':
  absltest.main()
