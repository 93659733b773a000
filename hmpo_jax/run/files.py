"""Files that are whole or not there, and folders that one process holds."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import pathlib
import sys
import time

from hmpo_jax import config as config_lib

_LOCK = '.lock'


def replace(file: pathlib.Path, text: str) -> None:
  """Writes a file as a whole: a kill leaves the old one or the new one."""
  temporary = file.with_name(f'{file.name}.tmp')
  temporary.write_text(text, encoding='utf-8')
  temporary.replace(file)


def write_json(file: pathlib.Path, content: dict) -> None:
  """Writes a JSON file as a whole, see `replace`."""
  replace(file, json.dumps(content, indent=2) + '\n')


def read_json(file: pathlib.Path) -> dict | None:
  """The object of a JSON file; None if there is none that is whole."""
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
  return content if isinstance(content, dict) else None


@contextlib.contextmanager
def locked(
  folder: pathlib.Path, use: str, patience: float = 0.0
) -> Iterator[int]:
  """Makes a folder and locks it against other processes.

  The lock is the operating system's: it goes with the process, however that
  ends, and with those that have inherited its descriptor.

  Args:
    folder: made if missing.
    use: what another process is doing there, for the error.
    patience: seconds that the end of another process is waited for.

  Yields:
    The descriptor of the lock.

  Raises:
    ConfigError: no folder can be made there, its file system knows no locks, or
      another process holds it.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / _LOCK, 'w', encoding='utf-8')
  except OSError as error:
    raise config_lib.ConfigError(
      f"--workdir={folder} can't be made: {error}"
    ) from error
  with lock:
    _wait(lock, folder, use, patience)
    yield lock.fileno()


def _wait(lock, folder, use, patience):
  """Locks a file once its holder has ended."""
  until, is_waiting = time.monotonic() + patience, False
  while not _is_ours(lock, folder):
    if time.monotonic() >= until:
      raise config_lib.ConfigError(
        f'another process is {use} {folder}: wait for it, or choose '
        'another --workdir'
      )
    if not is_waiting:
      print(
        f'{folder} is in use; waiting until its workers have ended',
        file=sys.stderr,
        flush=True,
      )
    is_waiting = True
    time.sleep(0.5)


def _is_ours(lock, folder):
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:
    raise config_lib.ConfigError(
      f'{folder}: its file system has no locks ({error.strerror}), without '
      'which two processes could write there at once: choose a --workdir on '
      'another'
    ) from error
  return True
