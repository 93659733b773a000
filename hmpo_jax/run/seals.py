"""Digests of all files of a folder, to tell what was damaged on disk."""

from collections.abc import Callable
import hashlib
import json
import pathlib

from hmpo_jax.run import files

SUFFIX = '.sha256.json'
_ASIDE = 'damaged'  # folder for what can't be used; nothing is deleted


def of(folder: pathlib.Path) -> pathlib.Path:
  """The seal beside a folder."""
  return folder.with_name(f'{folder.name}{SUFFIX}')


def write(folder: pathlib.Path, seal: pathlib.Path) -> None:
  """Seals a folder as it is: the last file that is written of it."""
  files.replace(seal, json.dumps(_digests(folder)))


def fault(folder: pathlib.Path, seal: pathlib.Path) -> str | None:
  """What is wrong with a folder, None if it is as its seal says."""
  if not seal.exists():
    return 'was not finished'
  expected = files.read_json(seal)
  if expected is None:
    return f'has an unreadable seal, {seal.name}'
  there = _digests(folder)
  for name in sorted(expected | there):
    if expected.get(name) != there.get(name):
      return f'is damaged in {name}'
  return None


def move_aside(
  path: pathlib.Path, reason: str | None, note: Callable[[str], None]
) -> None:
  """Moves a file or folder into damaged/, under a name that is free there.

  Args:
    path: of it.
    reason: from `fault`, which the user is told; None for no word.
    note: takes a line for the user.
  """
  aside = path.parent / _ASIDE
  aside.mkdir(exist_ok=True)
  target, count = aside / path.name, 1
  while target.exists():
    target, count = aside / f'{path.name}-{count}', count + 1
  path.rename(target)
  if reason:
    note(f'warning: checkpoint {path} {reason}: moved to {target}')


def _digests(folder):
  """SHA-256 of every file below a folder but its own seal, by its path."""
  digests = {}
  for path in sorted(folder.rglob('*')):
    if path.is_file() and path.name != SUFFIX:
      with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
      digests[str(path.relative_to(folder))] = digest
  return digests
