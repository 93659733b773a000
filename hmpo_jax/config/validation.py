"""Whether a configuration can run."""

import math

import ml_collections
import numpy as np

from hmpo_jax import base
from hmpo_jax.config import keys
from hmpo_jax.config import rules

_FLOAT32_MAX = 3.4e38


def validate(config) -> None:
  """Raises ConfigError for the first value that can't run.

  Args:
    config: what a file in configs/ returned, with its overrides applied.

  Raises:
    ConfigError: an unknown or missing key, a wrong type, or a value outside
      its range; the message names the key, the value and what is allowed.
  """
  _check_keys(config, keys.default_config(), '')
  for key, row in keys.ROWS.items():
    value = keys.lookup(config, key)
    # Traced values are float32: what rounds to 0 or 1 there is not allowed.
    used = float(np.float32(value)) if isinstance(value, float) else value
    if not row.allowed.holds(used):
      raise base.ConfigError(
        f'config.{key} = {value!r}: must be {row.allowed.words}'
      )
  _check_unused(config)
  for joined, is_allowed, allowed in rules.JOINT_RULES:
    if not is_allowed(config):
      given = (f'config.{key} = {keys.lookup(config, key)!r}' for key in joined)
      raise base.ConfigError(f'{", ".join(given)}: {allowed}')


def _check_unused(config):
  """What a choice has no use for keeps its default: it would do nothing."""
  default = keys.default_config()
  for key, choice in rules.unused(config, default).items():
    value, unset = keys.lookup(config, key), keys.lookup(default, key)
    if value != unset:
      raise base.ConfigError(
        f'config.{key} = {value!r}: must be {unset!r} with config.{choice} = '
        f'{keys.lookup(config, choice)!r}, which has no use for it'
      )


def _check_keys(config, reference, prefix):
  """Same keys and same types as the reference, section by section."""
  for key in config:
    if key not in reference:
      raise keys.unknown_key(f'{prefix}{key}', reference, f'{prefix}{key}')
  for key, default in reference.items():
    if key not in config:
      raise base.ConfigError(
        f'config.{prefix}{key}: missing key; start from '
        'hmpo_jax.config.default_config()'
      )
    value = config[key]
    if isinstance(default, ml_collections.ConfigDict):
      if not isinstance(value, ml_collections.ConfigDict):
        raise base.ConfigError(
          f'config.{prefix}{key} = {value!r}: must be a section of keys'
        )
      _check_keys(value, default, f'{prefix}{key}.')
    elif not _has_type(value, type(default)):
      raise base.ConfigError(
        f'config.{prefix}{key} = {value!r}: must be '
        f'{type(default).__name__}, is {type(value).__name__}'
      )
    elif isinstance(default, float) and _FLOAT32_MAX < abs(value) < math.inf:
      raise base.ConfigError(
        f'config.{prefix}{key} = {value!r}: must be inf or '
        f'within float32, +-{_FLOAT32_MAX:.1e}'
      )
    elif isinstance(default, int) and abs(value) >= 2**31:
      raise base.ConfigError(
        f'config.{prefix}{key} = {value!r}: must be within int32, +-2**31'
      )


def _has_type(value, wanted):
  if isinstance(value, bool) or wanted is bool:
    return isinstance(value, bool) and wanted is bool
  return isinstance(value, (int, float) if wanted is float else wanted)
