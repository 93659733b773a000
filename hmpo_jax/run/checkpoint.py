"""Checkpoints of a run by orbax, sealed by digests, and single trees on disk.

A checkpoint holds the `learner.TrainState` and what else `Session` gives it.

Orbax restores array bytes that were flipped on disk without a word. So each
checkpoint has a file of SHA-256 digests beside it, written last: a checkpoint
without a seal was not finished, one that differs from its seal is damaged.
"""

from collections.abc import Callable
from concurrent import futures
import contextlib
import errno
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any
from typing import NamedTuple

from absl import logging as absl_logging
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from hmpo_jax.run import seals

_OVERHEAD_BYTES = 2**20  # of a checkpoint beside its arrays, generously
_STEP = re.compile('0|[1-9][0-9]*')  # name of a checkpoint's folder
_UNFINISHED = re.compile(r'[0-9]+\.orbax-checkpoint-tmp.*')
_UNSCORED = -1.0  # below every reward


def _is_for_user(record):
  """Not orbax's logs, unless asked for: what fails there is raised here."""
  return (
    '/orbax/' not in record.pathname
    or absl_logging.get_verbosity() > absl_logging.WARNING
  )


absl_logging.get_absl_logger().addFilter(_is_for_user)

# Errors of a disk that takes no more.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SaveError(OSError):
  """A checkpoint could not be written; those before it are as they were."""


def is_full(error: BaseException | None) -> bool:
  """Whether an error, or one that it came from, is of a disk without room.

  Python gives the number of such an error, tensorstore its text alone.
  """
  while error:
    if isinstance(error, OSError) and error.errno in _FULL:
      return True
    if any(os.strerror(number) in str(error) for number in _FULL):
      return True
    error = error.__cause__
  return False


class Restored(NamedTuple):
  """What a checkpoint held."""

  step: int
  state: Any
  extra: dict


class Checkpointer:
  """Writes the states of a run in the background, and restores the newest.

  A context manager; leaving it waits for the last save and its seal.
  """

  def __init__(
    self, folder: pathlib.Path, keep: int, note: Callable[[str], None]
  ):
    """Opens a folder, made if missing.

    What is damaged or unfinished, newest first, is moved into damaged/.

    Args:
      folder: absolute.
      keep: how many of the newest checkpoints stay, beside the best one.
      note: takes a line for the user.
    """
    self._folder = folder
    folder.mkdir(parents=True, exist_ok=True)
    _set_aside_unusable(folder, note)
    newest = checkpoint_managers.LatestN(keep)
    score = lambda metrics: metrics['score']
    best = checkpoint_managers.BestN(get_metric_fn=score, n=1)
    policy = checkpoint_managers.AnyPreservationPolicy([newest, best])
    # Without `best_fn` no score is on disk, and what a process finds there,
    # which has none for it, stays for ever.
    self._manager = ocp.CheckpointManager(
      folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policy, best_fn=score
      ),
    )
    self._pool = futures.ThreadPoolExecutor(1)
    self._sealing: futures.Future | None = None

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def close(self) -> None:
    """Waits for the last save and its seal.

    Raises:
      SaveError: that save failed.
    """
    try:
      self.wait()
    finally:
      self._pool.shutdown()
      with _translated_errors():
        self._manager.close()

  def save(
    self, step: int, state: Any, extra: dict, score: float | None
  ) -> None:
    """Saves a pytree of arrays and a JSON-able dict; returns before the end.

    The arrays are copied to the host first: the caller may donate them.

    Args:
      step: finished steps.
      state: to restore bit for bit.
      extra: what else a run carries.
      score: the checkpoint of the highest one is kept; None where this one was
        not scored, and is not kept for it.

    Raises:
      SaveError: this or the save before failed, on a full disk for one.
    """
    self.wait()
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(_without_keys(state)),
      extra=ocp.args.JsonSave(extra),
    )
    _require_room(self._folder, state)
    with _translated_errors():
      metrics = {'score': _UNSCORED if score is None else score}
      self._manager.save(step, args=args, metrics=metrics)
    self._sealing = self._pool.submit(self._seal, step)

  def wait(self) -> None:
    """Waits for the last save and its seal.

    Raises:
      SaveError: that save failed.
    """
    sealing, self._sealing = self._sealing, None
    if sealing is not None:
      with _translated_errors():
        sealing.result()

  def restore(self, like: Any, step: int | None = None) -> Restored | None:
    """Returns what was saved, bit for bit; None if there is no checkpoint.

    Args:
      like: pytree of arrays with the structure, shapes and dtypes to restore;
        the state comes back on their devices.
      step: of a checkpoint in `steps()`; the newest if None.
    """
    step = self.latest_step() if step is None else step
    if step is None:
      return None
    content = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(_without_keys(like)),
        extra=ocp.args.JsonRestore(),
      ),
    )
    return Restored(step, _with_keys(content['state'], like), content['extra'])

  def steps(self) -> list[int]:
    """Steps of the whole checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """Step of the newest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def _seal(self, step):
    self._manager.wait_until_finished()
    folder = self._folder / str(step)
    seal = seals.of(folder)
    seals.write(folder, seal)
    for other in self._folder.glob(f'*{seals.SUFFIX}'):
      sealed = other.name.removesuffix(seals.SUFFIX)
      if _STEP.fullmatch(sealed) and not (self._folder / sealed).exists():
        other.unlink()


def newest_step(folder: pathlib.Path) -> int:
  """The newest step in a folder of checkpoints that has its seal; 0 if none."""
  return max(
    (
      step
      for step, path in _step_folders(folder).items()
      if seals.of(path).exists()
    ),
    default=0,
  )


def place(tree: Any) -> Any:
  """Commits arrays to a device, as restored ones are.

  A jitted function compiles once for committed and once for other arguments.
  """
  return jax.device_put(tree, jax.devices()[0])


def save_tree(folder: pathlib.Path, tree: Any) -> None:
  """Keeps one pytree in a folder that appears whole or not at all.

  Raises:
    SaveError: it could not be written, on a full disk for one.
  """
  folder.parent.mkdir(parents=True, exist_ok=True)
  _require_room(folder.parent, tree)
  # Threads of a save that failed may still write: what failed must be told.
  with tempfile.TemporaryDirectory(
    dir=folder.parent, prefix='.', ignore_cleanup_errors=True
  ) as scratch:
    unnamed = pathlib.Path(scratch) / 'tree'
    with _translated_errors(), ocp.StandardCheckpointer() as saver:
      saver.save(unnamed, tree)
    seals.write(unnamed, unnamed / seals.SUFFIX)
    try:
      unnamed.rename(folder)
    except OSError:
      if not folder.exists():  # else another process was first with the same
        raise


def restore_tree(
  folder: pathlib.Path, like: Any, note: Callable[[str], None]
) -> Any | None:
  """The pytree of a folder, None if there is none or it is damaged.

  Args:
    folder: from `save_tree`; moved into damaged/ beside it where it differs
      from its seal.
    like: pytree of arrays or of jax.ShapeDtypeStruct; all comes back on the
      default device, wherever it was saved from.
    note: takes a line for the user.
  """
  if not folder.exists():
    return None
  fault = seals.fault(folder, folder / seals.SUFFIX)
  if fault:
    seals.move_aside(folder, fault, note)
    return None
  with ocp.StandardCheckpointer() as saver:
    return saver.restore(folder, _on_default_device(like))


def _require_room(folder, tree):
  """Orbax's threads fill the screen once they find a disk full: ask before."""
  needed = sum(x.nbytes for x in jax.tree.leaves(tree)) + _OVERHEAD_BYTES
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise SaveError(
      f'checkpoint not written: {folder} has {free:,} bytes free, '
      f'{needed:,} are needed'
    ) from OSError(errno.ENOSPC, 'no room')


@contextlib.contextmanager
def _translated_errors():
  """Orbax and tensorstore raise many types for a disk that takes no more."""
  try:
    yield
  except SaveError:
    raise
  except Exception as error:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise SaveError(f'checkpoint not written: {reason}') from error


def _step_folders(folder):
  """{step: its folder}, whole or not.

  A save that was killed leaves other names, and so may a user: not one of
  these is a step.
  """
  return {
    int(path.name): path
    for path in folder.glob('*')
    if _STEP.fullmatch(path.name) and path.is_dir()
  }


def _set_aside_unusable(folder, note):
  """Moves away what no run can resume from, until the newest is whole."""
  for path in sorted(folder.iterdir()):
    if _UNFINISHED.fullmatch(path.name):
      seals.move_aside(path, 'was not finished', note)
  for _, path in sorted(_step_folders(folder).items(), reverse=True):
    seal = seals.of(path)
    fault = seals.fault(path, seal)
    if not fault:
      return
    seals.move_aside(path, fault, note)
    if seal.exists():
      seals.move_aside(seal, None, note)


def _on_default_device(like):
  """Shapes with a sharding: without one, orbax takes the one it saved."""
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
  )


def _without_keys(tree):
  """Typed keys as their data: not every orbax saves them."""
  data = lambda x: jax.random.key_data(x) if _is_key(x) else x
  return jax.tree.map(data, tree)


def _with_keys(tree, like):

  def wrap(old, x):
    if not _is_key(old):
      return x
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(old))

  return jax.tree.map(wrap, like, tree)


def _is_key(x):
  return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
