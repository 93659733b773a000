"""The table of all keys of a run's configuration, and access by key.

Its rows stand in key_rows/, where row.py says how one is written. All that is
said of a key alone is its row; what joins keys stands in rules.py.
"""

from collections.abc import Mapping
import difflib

import ml_collections

from hmpo_jax import base
from hmpo_jax.config.key_rows import learning
from hmpo_jax.config.key_rows import loop
from hmpo_jax.config.key_rows import row
from hmpo_jax.config.key_rows import sampling

# By the first part of a key; '' are those that have one part only.
SECTIONS: dict[str, row.Section] = {
  '': sampling.RUN,
  'task': sampling.TASK,
  'reward': sampling.REWARD,
  'model': sampling.MODEL,
  'rollout': sampling.ROLLOUT,
  'advantage': sampling.ADVANTAGE,
  'loss': learning.LOSS,
  'exponent': learning.EXPONENT,
  'tracking': learning.TRACKING,
  'train': learning.TRAIN,
  'optim': learning.OPTIM,
  'warm_start': loop.WARM_START,
  'eval': loop.EVAL,
  'mechanism': loop.MECHANISM,
  'control': loop.CONTROL,
  'checkpoint': loop.CHECKPOINT,
}

# All rows by dotted key, 'loss.p'.
ROWS: dict[str, row.Row] = {
  f'{section}.{name}'.removeprefix('.'): found
  for section, content in SECTIONS.items()
  for name, found in content.rows.items()
}


def default_config() -> ml_collections.ConfigDict:
  """Returns all keys with their defaults: HMPO with MuonClip on sorting."""
  config = ml_collections.ConfigDict()
  for section, content in SECTIONS.items():
    node = config
    if section:
      node = config[section] = ml_collections.ConfigDict()
    for name, found in content.rows.items():
      node[name] = found.default
  return config


def values(config, role: str) -> dict[str, dict]:
  """The values of the keys of one role, by section and last part of the key.

  Args:
    config: with the keys of the default one.
    role: a key of `row.ROLES`.
  """
  result: dict[str, dict] = {}
  for key, found in ROWS.items():
    if found.role == role:
      section, _, name = key.rpartition('.')
      result.setdefault(section, {})[name] = lookup(config, key)
  return result


def of_range(allowed: row.Range) -> tuple[str, ...]:
  """The keys whose range is this one itself, such as `row.FILE`."""
  return tuple(key for key, found in ROWS.items() if found.allowed is allowed)


def lookup(config, key: str):
  """The value or section of a dotted key; '' is the whole configuration.

  Raises:
    ConfigError: there is no such key; names the nearest.
  """
  path = key.split('.') if key else []
  for depth, part in enumerate(path):
    if not isinstance(config, ml_collections.ConfigDict) or part not in config:
      raise unknown_key('.'.join(path[: depth + 1]), config, key)
    config = config[part]
  return config


def flat(tree: Mapping, prefix: str = '') -> dict:
  """Nested mappings as one dict with dotted keys."""
  result: dict = {}
  for key, value in tree.items():
    name = f'{prefix}{key}'
    is_section = isinstance(value, Mapping)
    result |= flat(value, f'{name}.') if is_section else {name: value}
  return result


def unknown_key(key: str, known, whole: str) -> base.ConfigError:
  """The error for a dotted key that its section, `known`, doesn't hold.

  It is the beginning of the `whole` key that was asked for.
  """
  section = key.rpartition('.')[0]
  names = list(known) if isinstance(known, ml_collections.ConfigDict) else []
  near = _nearest(key, names, whole)
  if not names:
    hint = f'config.{section} is a value, not a section'
  elif near:
    hint = f'did you mean {" or ".join(near)}?'
  else:
    hint = f'known keys here: {", ".join(sorted(names))}'
  return base.ConfigError(f'config.{key}: unknown key; {hint}')


def _nearest(key, names, whole):
  """Keys that hold the name or have it in another section, or one like it."""
  section, dot, name = key.rpartition('.')
  last = lambda other: other.rpartition('.')[2]
  alike = lambda other: difflib.SequenceMatcher(None, whole, other).ratio()
  # Of a section that is unknown, all of the key says more.
  is_short = len(name) < 3 or key != whole
  holding = [other for other in names if name in other and not is_short]
  close = difflib.get_close_matches(name, names, n=1)
  like = difflib.get_close_matches(last(whole), map(last, ROWS), n=1)
  same = [other for other in ROWS if last(other) == last(whole)]
  same.sort(key=lambda other: (other.count('.'), -alike(other)))
  here = holding if same else close
  return [f'{section}{dot}{other}' for other in here] + same or [
    other for other in ROWS if last(other) in like
  ]
