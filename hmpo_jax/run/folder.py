"""The run folder: whose it is, and that one process at a time writes it."""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import pathlib
import re

import jax

from hmpo_jax import config as config_lib
from hmpo_jax.config import files as config_files
from hmpo_jax.config import keys
from hmpo_jax.config.key_rows import row
from hmpo_jax.run import environment
from hmpo_jax.run import files
from hmpo_jax.run import growth
from hmpo_jax.tasks import host_function

_THREADS = 'settings.cpu_threads'
# Keys that name a file which is read before the first step.
_FILES = keys.of_range(row.FILE)
# Keys that name a user's function. A run may go on with its source changed,
# since that is how a fault in it is mended, but says so.
_FUNCTIONS = keys.of_range(row.FUNCTION)
# Parts of the description that make a run another one.
_IDENTITY = ('config', 'inputs', 'settings', 'versions')
# Where a cache lies, and files whose digests stand among the inputs: they may
# move.
_PLACES = keys.of_range(row.FOLDER) + _FILES
# Storage by an address; pathlib has made one slash of two.
_REMOTE = re.compile('[a-z][a-z0-9+.-]*://|(gs|s3):/[^/]')
_LENGTH = 'num_steps'  # which alone may grow
CONFIG, SUMMARY = 'config.json', 'summary.json'
# What a run leaves beside its config.json.
_CONTENT = ('checkpoints', 'metrics.jsonl', SUMMARY)


def describe(config) -> dict:
  """What config.json says of a run: all that is needed to do it again."""
  return described_config(config) | {
    'inputs': inputs(config),
    'settings': environment.settings(),
    'commit': environment.commit(),
    'versions': environment.versions(),
    'device': jax.devices()[0].device_kind,
    'cpu': environment.cpu(),
  }


def described_config(config) -> dict:
  """The part of `describe` that asks no device."""
  return {'config': config_files.plain(config.to_dict())}


def inputs(config) -> dict[str, str]:
  """SHA-256 of the files that a configuration names, by its keys.

  Of a function it is that of its own file, not of what this imports.
  """
  named = {key: config_lib.lookup(config, key) for key in _FILES + _FUNCTIONS}
  sources = {
    key: host_function.source(name) if key in _FUNCTIONS else pathlib.Path(name)
    for key, name in named.items()
  }
  return {
    key: hashlib.sha256(file.read_bytes()).hexdigest()
    for key, file in sources.items()
    if file and file.is_file()
  }


def changed_functions(workdir: pathlib.Path, config) -> list[str]:
  """Keys of functions whose source is not what the last steps were made with.

  Args:
    workdir: run folder with a config.json.
    config: that would make the next ones.
  """
  known, now = _sources(_content(workdir)), inputs(config)
  return [
    key for key in _FUNCTIONS if key in known and now.get(key, '') != known[key]
  ]


def write_functions(workdir: pathlib.Path, config, step: int) -> list[str]:
  """Writes to config.json by which functions the steps after `step` are made.

  Returns:
    A line for the user about each of `changed_functions`.
  """
  changed = changed_functions(workdir, config)
  if changed:
    content, now = _content(workdir), inputs(config)
    content.setdefault('changes', []).append(
      {'after_step': step, 'inputs': {key: now.get(key, '') for key in changed}}
    )
    files.write_json(workdir / CONFIG, content)
  return [
    (
      f'warning: the source of config.{key} has changed since step {step}'
      ': the records after it are of another function, as config.json '
      'says'
    )
    for key in changed
  ]


def last_change(workdir: pathlib.Path, key: str) -> int:
  """The step after which the source of a function changed; 0 if it did not."""
  changes = _content(workdir).get('changes', [])
  return max(
    (c['after_step'] for c in changes if key in c['inputs']), default=0
  )


def doubts(workdir: pathlib.Path) -> str:
  """Why even the same code may have other bits here than a run had.

  Of what `refuse_other_run` lets pass; '' where nothing is known to differ.
  """
  if not (workdir / CONFIG).exists():
    return ''
  content = _content(workdir)
  here = {'device': jax.devices()[0].device_kind, 'cpu': environment.cpu()}
  reasons = [
    f'its {name} was {content[name]!r} and is {value!r} here'
    for name, value in here.items()
    if content.get(name, value) != value
  ]
  there = content.get('settings', {})
  if there.get('platform') == 'cpu' and 'cpu_threads' not in there:
    reasons.append(
      'it did not record the number of its CPU threads, which is '
      f'{environment.cpu_threads()} here'
    )
  return '; '.join(reasons)


def refuse_other_run(
  workdir: pathlib.Path, description: dict, bound: str = ''
) -> None:
  """Checks that a folder is new or holds the run that is described.

  That run may have fewer steps than described, see growth.py.

  Args:
    workdir: run folder.
    description: from `describe`, or a part of it, which alone is compared.
    bound: why its number of steps must be the same; '' where it may grow.

  Raises:
    ConfigError: the path is no folder, its config.json is not readable, or
      another configuration or version wrote it; names the keys that differ.
  """
  _refuse_file(workdir)
  file = workdir / CONFIG
  if not file.exists():
    orphans = [name for name in _CONTENT if (workdir / name).exists()]
    if orphans:
      raise config_lib.ConfigError(
        f'{workdir} holds {", ".join(orphans)} but no {CONFIG}, so whose run '
        "it is can't be told: choose another --workdir"
      )
    return
  theirs = _read_description(file)
  if 'settings' in description:
    # What only one side records, the other is too old or too new to know.
    theirs['settings'] = {
      key: theirs['settings'].get(key, value)
      for key, value in description['settings'].items()
    }
  parts = [part for part in _IDENTITY if part in description]
  theirs_flat, ours_flat = (
    {
      key: value
      for part in parts
      for key, value in config_lib.flat(side[part], f'{part}.').items()
    }
    for side in (theirs, description)
  )
  differing = {
    key: f'{key}: {there} there, {here} here'
    for key, there, here in _differences(
      theirs_flat, ours_flat, 'inputs' in parts
    )
  }
  length = f'config.{_LENGTH}'
  if list(differing) == [length]:
    bound = bound or growth.refusal(
      theirs['config'], description['config']['num_steps']
    )
    if not bound:
      return
    differing[length] += f', and {bound}'
  if _THREADS in differing:
    count = theirs['settings']['cpu_threads']
    differing[_THREADS] += (
      f' (NPROC={count} in front of the command makes it {count} here, with '
      'the same bits)'
    )
  if differing:
    raise config_lib.ConfigError(
      f'{workdir} holds a run of another configuration or version '
      f'({"; ".join(differing.values())}): choose another --workdir'
    )


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, description: dict) -> Iterator[None]:
  """Makes the folder with its config.json and locks it against others.

  Raises:
    ConfigError: another process holds the folder, or see `refuse_other_run`.
  """
  _refuse_file(workdir)
  with files.locked(workdir, 'writing'):
    refuse_other_run(workdir, description)
    if not (workdir / CONFIG).exists():
      files.write_json(workdir / CONFIG, description)
    _move(workdir, config_lib.flat(description['config'], ''))
    yield


def placed(workdir: str | pathlib.Path) -> pathlib.Path:
  """The absolute path of a run folder.

  Raises:
    ConfigError: no folder that a run can be kept in has such a name.
  """
  refuse_place(str(workdir))
  path = pathlib.Path(workdir).absolute()
  refuse_place(str(path))
  return path


def refuse_place(name: str) -> None:
  """Raises ConfigError if a name is none that runs can use for a path."""
  if _REMOTE.match(name):
    raise config_lib.ConfigError(
      f'{name!r} is no path on this machine: mount the storage, and name the '
      'folder where it is mounted'
    )
  try:
    name.encode('utf-8')
  except UnicodeEncodeError as error:
    raise config_lib.ConfigError(
      f'{name!a} is not encoded in UTF-8, as all names must be that stand in '
      'files of a run: rename it'
    ) from error


def lengthen(workdir: pathlib.Path, num_steps: int) -> None:
  """Gives the run of a folder, which can go on, its number of steps.

  The summary of a shorter one goes first: killed in between, the run ends where
  it did.
  """
  content = _content(workdir)
  if content['config']['num_steps'] != num_steps:
    (workdir / SUMMARY).unlink(missing_ok=True)
    content['config']['num_steps'] = num_steps
    files.write_json(workdir / CONFIG, content)


def _move(workdir, config):
  """Gives the run of a folder the places of its files by now."""
  content = _content(workdir)
  ours = config_lib.flat(content['config'], '')
  moved = {
    key: config[key]
    for key in _PLACES + _FUNCTIONS
    if key in config and config[key] != ours.get(key)
  }
  for key, value in moved.items():
    section, _, name = key.partition('.')
    content['config'].setdefault(section, {})[name] = value
  if moved:
    files.write_json(workdir / CONFIG, content)


def _content(workdir):
  return json.loads((workdir / CONFIG).read_text(encoding='utf-8'))


def _sources(content):
  """Digests of inputs, as they were in the last steps."""
  known = dict(content['inputs'])
  for change in content.get('changes', []):
    known |= change['inputs']
  return known


def _refuse_file(workdir):
  """Checks that a path is a folder or can become one."""
  for path in (workdir, *workdir.parents):
    if path.exists() and not path.is_dir():
      raise config_lib.ConfigError(
        f'--workdir={workdir}: {path} is not a folder'
      )


def _read_description(file):
  try:
    description = json.loads(file.read_text(encoding='utf-8'))
    for change in description.get('changes', []):
      _ = change['after_step'], dict(change['inputs'])
    return {part: dict(description[part]) for part in _IDENTITY}
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise config_lib.ConfigError(
      f'{file} is not the description of a run ({error!r}): put it back, or '
      'choose another --workdir'
    ) from error


def _differences(theirs, ours, has_digests):
  """Keys with their values there and here, where these differ."""
  for key in sorted(theirs | ours):
    there, here = (side.get(key, 'absent') for side in (theirs, ours))
    part, _, name = key.partition('.')
    if there == here or part == 'config' and name in _PLACES:
      continue
    if name in _FUNCTIONS:
      digests = [side.get(f'inputs.{name}') for side in (theirs, ours)]
      is_same = None not in digests and digests[0] == digests[1]
      if (
        part == 'inputs'
        or (is_same or not has_digests)
        and (_function(there) == _function(here))
      ):
        continue
    yield key, there, here


def _function(name):
  """That of 'module:function' or 'file.py:function', wherever it lies."""
  return name.rpartition(':')[2]
