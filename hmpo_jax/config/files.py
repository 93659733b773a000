"""Configurations from files, and their overrides from a command line.

ml_collections' own flag reports a missing file on the first access and an
unknown key as a bare KeyError; here each fault is one line of ConfigError.
"""

from collections.abc import Mapping
import json
import math
import os
import pathlib
import re
import runpy
import traceback
from typing import Any

import ml_collections

from hmpo_jax import config as config_lib

_BOOLS = {'true': True, '1': True, 'false': False, '0': False}
_PARSERS = {bool: lambda text: _BOOLS[text.lower()]}


def load(path: str, overrides: Mapping[str, str]) -> ml_collections.ConfigDict:
  """Reads a configuration, overrides keys of it, and validates it.

  Args:
    path: a Python file that defines get_config(), as those in configs/, with
      `:argument` behind it where get_config takes one; or the config.json of a
      run folder.
    overrides: texts by dotted key, {'loss.p': '-0.5'}.

  Raises:
    ConfigError: a file that can't be read, runs into an error or returns
      something else, an override that doesn't fit, or see `config.validate`.
  """
  config = read(path)
  if not isinstance(config, ml_collections.ConfigDict):
    raise config_lib.ConfigError(
      f'--config={path}: get_config() must return a ConfigDict, returned '
      f'{type(config).__name__} (experiments/compare.py runs a Plan)'
    )
  for key, text in overrides.items():
    set_key(config, key, typed(key, text))
  config_lib.validate(config)
  return config


def read(path: str):
  """What a configuration file returns, a plan's too, or a config.json holds.

  Raises:
    ConfigError: it can't be read, or runs into an error.
  """
  file, argument = split(path)
  if not os.path.isfile(file):
    raise config_lib.ConfigError(f'--config={path}: there is no file {file!r}')
  try:
    return (
      _from_json(file)
      if file.endswith('.json')
      else _from_python(file, argument)
    )
  except (Exception, SystemExit) as error:  # noqa: BLE001
    # A Python file can raise anything.
    text = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise config_lib.ConfigError(
      f'--config={path}: must be a Python file with get_config(), or the '
      f'config.json of a run; reading it ended in {text}{_at(file, error)}'
    ) from error


def plain(tree: Any) -> Any:
  """Nested keys as JSON takes them, which knows no infinity: as a text."""
  if isinstance(tree, Mapping):
    return {key: plain(value) for key, value in tree.items()}
  if isinstance(tree, float) and not math.isfinite(tree):
    return str(tree)
  return tree


def split(path: str) -> tuple[str, str]:
  """File and argument of FILE[:ARGUMENT]; a path may hold colons of its own."""
  parts = path.split(':')
  starts = (':'.join(parts[:n]) for n in range(len(parts), 0, -1))
  file = next(filter(os.path.isfile, starts), path)
  return file, path[len(file) + 1 :]


def run_name(path: str) -> str:
  """What the run, or the plan, of FILE[:ARGUMENT] is called if nothing else."""
  file, argument = split(path)
  found = pathlib.Path(file)
  # A run is repeated beside the run, not in its folder.
  stem = f'{found.parent.name}-again' if found.suffix == '.json' else found.stem
  return stem + (argument and '-' + re.sub(r'[^\w.=-]', '_', argument))


def _at(file, error):
  """The line of a file at which an error was raised, if one was."""
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == file]
  return f', at line {lines[-1]}' if lines else ''


def _from_python(file, argument):
  get_config = runpy.run_path(file)['get_config']
  return get_config(argument) if argument else get_config()


def _from_json(file):
  """The configuration that run_folder.describe wrote.

  A key that is younger than the file has its default, with which a run is what
  it was before there was the key.
  """
  content = json.loads(pathlib.Path(file).read_text(encoding='utf-8'))
  config = config_lib.default_config()
  for key, value in config_lib.flat(content['config']).items():
    # A text may be infinity, which JSON doesn't know.
    if isinstance(value, str):
      value = typed(key, value)
    set_key(config, key, value)
  return config


def typed(key: str, text: str):
  """What a text says, in the type that a key of a run has.

  Raises:
    ConfigError: no such key, a section, or a text that is none of its type.
  """
  wanted = type(config_lib.lookup(config_lib.default_config(), key))
  if wanted is ml_collections.ConfigDict:
    raise config_lib.ConfigError(
      f'config.{key} = {text!r}: is a section; set one of its keys, as '
      f'--config.{key}.NAME=VALUE'
    )
  try:
    return _PARSERS.get(wanted, wanted)(text)
  except (ValueError, KeyError) as error:
    raise config_lib.ConfigError(
      f'config.{key} = {text!r}: must be {wanted.__name__}'
    ) from error


def set_key(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
  """Sets a dotted key to a value of whatever type.

  Raises:
    ConfigError: there is no such key.
  """
  if isinstance(config_lib.lookup(config, key), ml_collections.ConfigDict):
    raise config_lib.ConfigError(f'config.{key} is a section of keys')
  section, _, name = key.rpartition('.')
  node = config_lib.lookup(config, section)
  with node.unlocked(), node.ignore_type():
    node[name] = value
