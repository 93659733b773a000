"""Compiled programs that outlive a process, so that the next one compiles none.

JAX's own cache, in a folder of the user's. JAX writes its files in place and
never replaces one, so that a file cut short by a kill or a full disk would cost
its program at every later start: such files are removed here. JAX's bound on
the size needs the package filelock, which JAX doesn't install, and fails on
files without their time of use; so the bound is kept here too, at a start.
"""

from collections.abc import Iterator
import contextlib
import importlib
import os
import pathlib
import sys
import zlib

import jax

MAX_BYTES = 1 << 30  # what a start leaves is below
_MIN_COMPILE_TIME = 'jax_persistent_cache_min_compile_time_secs'
_FOLDER = 'jax_compilation_cache_dir'
_JAX_DEFAULTS = {_MIN_COMPILE_TIME: 1.0, _FOLDER: None}
_STAMP = 'checked'
_ZSTD = b'\x28\xb5\x2f\xfd'  # how a file starts that zstd compressed


def switch_on() -> None:
  """Has JAX keep all programs that this process compiles from now on.

  A variable or flag of JAX's own that is set wins: JAX_COMPILATION_CACHE_DIR,
  JAX_ENABLE_COMPILATION_CACHE, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS. If
  the folder can't be written, one line says so and nothing is kept. JAX's keys
  hold its version, the kind of the device, the CPU's features and XLA_FLAGS, so
  that all of these can share the folder.
  """
  if not getattr(jax.config, 'jax_enable_compilation_cache'):
    return
  if not _is_set(_MIN_COMPILE_TIME):
    jax.config.update(_MIN_COMPILE_TIME, 0.0)
  if _is_set(_FOLDER):
    return
  path = folder()
  if path is None:
    _warn('no home folder is known')
    return
  try:
    # Whoever can write here can have this user run anything.
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    tidy(path)
  except OSError as error:
    _warn(error)
    return
  jax.config.update(_FOLDER, str(path))


def folder() -> pathlib.Path | None:
  """hmpo_jax/compiled in $XDG_CACHE_HOME, which is ~/.cache by default.

  None for a user without a home folder, as some containers have.
  """
  caches = os.environ.get('XDG_CACHE_HOME', '')
  # The XDG specification has relative paths ignored.
  if not os.path.isabs(caches):
    caches = os.path.expanduser('~/.cache')
  if not os.path.isabs(caches):
    return None
  return pathlib.Path(caches) / 'hmpo_jax' / 'compiled'


def tidy(path: pathlib.Path, max_bytes: int = MAX_BYTES) -> None:
  """Removes damaged entries, and the oldest of too many.

  Each entry is read once, by the first call after it was written. Other
  processes may read and write the folder meanwhile: what one of them is just
  writing may go, and is compiled again.

  Args:
    path: folder of a cache.
    max_bytes: if the entries take more, those used last stay, with at most half
      of it.

  Raises:
    OSError: the folder can't be read or written.
  """
  stamp, now = path / _STAMP, path / f'{_STAMP}-{os.getpid()}'
  since = stamp.stat().st_mtime_ns if stamp.exists() else 0
  now.touch()  # before the entries are listed, by the disk's clock
  for file, status in _entries(path):
    if status.st_mtime_ns >= since and not _is_whole(file):
      file.unlink(missing_ok=True)
  _remove_oldest(path, max_bytes)
  now.replace(stamp)


def _warn(reason):
  print(
    f'warning: compiled programs are not kept ({reason}): see '
    'JAX_COMPILATION_CACHE_DIR',
    file=sys.stderr,
  )


def _is_set(name):
  """Whether the user set an option of JAX, be it to its default."""
  return (
    name.upper() in os.environ
    or getattr(jax.config, name) != _JAX_DEFAULTS[name]
  )


def _entries(path) -> Iterator[tuple[pathlib.Path, os.stat_result]]:
  """Files of a cache; not those that go meanwhile."""
  for file in path.glob('*-cache'):
    with contextlib.suppress(FileNotFoundError):
      if file.is_file():
        yield file, file.stat()


def _remove_oldest(path, max_bytes):
  entries = list(_entries(path))
  total = sum(status.st_size for _, status in entries)
  if total <= max_bytes:
    return
  last_use = lambda entry: max(entry[1].st_atime_ns, entry[1].st_mtime_ns)
  for file, status in sorted(entries, key=last_use):
    file.unlink(missing_ok=True)
    total -= status.st_size
    if total <= max_bytes // 2:
      break


def _is_whole(file):
  """Whether a file can be decompressed; true where that can't be told."""
  try:
    content = file.read_bytes()
  except FileNotFoundError:
    return True
  if content.startswith(_ZSTD):
    return _is_whole_zstd(content)
  try:
    zlib.decompress(content)
  except zlib.error:
    return False
  return True


def _is_whole_zstd(content):
  name = 'compression.zstd' if sys.version_info >= (3, 14) else 'zstandard'
  try:
    zstd = importlib.import_module(name)
  except ImportError:  # then JAX doesn't look for this file
    return True
  try:
    zstd.decompress(content)
  except zstd.ZstdError:
    return False
  return True
