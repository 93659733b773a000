"""Checkpoints of a run by orbax, and single trees that are kept on disk."""

import pathlib
import tempfile
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpointer:
  """Writes the states of a run in the background, and restores the newest.

  A context manager; leaving it waits for the last save.
  """

  def __init__(self, folder: pathlib.Path, keep: int):
    """Opens a folder, made if missing; `keep` newest checkpoints stay."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    self._manager = ocp.CheckpointManager(folder, options=options)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._manager.wait_until_finished()
    self._manager.close()

  def latest_step(self) -> int | None:
    """Step of the newest whole checkpoint, None if there is none."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, extra: dict) -> None:
    """Saves a pytree of arrays and a JSON-able dict; returns before the end.

    The arrays are copied to the host first: the caller may donate them.
    """
    self._manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(_without_keys(state)),
            extra=ocp.args.JsonSave(extra)))

  def restore(self, step: int, like: Any) -> tuple[Any, dict]:
    """Returns what was saved, bit for bit.

    Args:
      step: of a checkpoint that exists.
      like: pytree of arrays with the structure, shapes and dtypes to restore.

    Returns:
      the state, on the devices of `like`, and the extra dict.
    """
    restored = self._manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(_without_keys(like)),
            extra=ocp.args.JsonRestore()))
    return _with_keys(restored['state'], like), restored['extra']


def place(tree: Any) -> Any:
  """Commits arrays to a device, as restored ones are.

  A jitted function compiles once for committed and once for other arguments.
  """
  return jax.device_put(tree, jax.devices()[0])


def save_tree(folder: pathlib.Path, tree: Any) -> None:
  """Keeps one pytree in a folder that appears whole or not at all."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=folder.parent, prefix='.') as scratch:
    with ocp.StandardCheckpointer() as saver:
      saver.save(pathlib.Path(scratch) / 'tree', tree)
    try:
      (pathlib.Path(scratch) / 'tree').rename(folder)
    except OSError:
      if not folder.exists():  # else another process was first with the same
        raise


def restore_tree(folder: pathlib.Path, like: Any) -> Any | None:
  """The pytree of a folder, None if there is no such folder.

  Args:
    folder: from `save_tree`.
    like: pytree of arrays or of jax.ShapeDtypeStruct.
  """
  if not folder.exists():
    return None
  with ocp.StandardCheckpointer() as saver:
    return saver.restore(folder, like)


def _without_keys(tree):
  """Typed keys as their data: not every orbax saves them."""
  return jax.tree.map(lambda x: jax.random.key_data(x)
                      if _is_key(x) else x, tree)


def _with_keys(tree, like):
  wrap = lambda old, x: jax.random.wrap_key_data(
      x, impl=jax.random.key_impl(old)) if _is_key(old) else x
  return jax.tree.map(wrap, like, tree)


def _is_key(x):
  return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
