"""Settings of JAX that a user may have on and that no run can have."""

import jax
import jax.numpy as jnp

from hmpo_jax import config as config_lib

# Each with the values that are allowed, and why no other is.
_ALLOWED = (
  ('jax_enable_x64', (False,), 'runs are in float32'),
  (
    'jax_debug_nans',
    (False,),
    'NaN marks what was not measured, and updates that it spoils are skipped '
    'and counted',
  ),
  ('jax_debug_infs', (False,), 'infinity switches bounds off'),
  ('jax_numpy_rank_promotion', ('allow', 'warn'), 'shapes are broadcast'),
  ('jax_numpy_dtype_promotion', ('standard',), 'dtypes are promoted'),
  (
    'jax_transfer_guard',
    (None, 'allow', 'log', 'log_explicit'),
    'arrays move between host and device as they are needed',
  ),
)


def refuse() -> None:
  """Raises ConfigError for a setting under which a run would fail.

  Asks for no device.
  """
  for name, allowed, reason in _ALLOWED:
    value = getattr(jax.config, name)
    if value not in allowed:
      choices = ' or '.join(str(choice) for choice in allowed if choice)
      raise config_lib.ConfigError(
        f'{name.upper()} = {value}: must be {choices or "off"}, {reason}'
      )


def refuse_without_device() -> None:
  """Raises ConfigError if JAX finds no device to run on."""
  try:
    jnp.zeros(())
  except (AssertionError, RuntimeError) as error:
    # What JAX says of a platform without a plugin is nothing at all.
    text = (str(error) or 'no such device').splitlines()[0]
    given = getattr(jax.config, 'jax_platforms')
    raise config_lib.ConfigError(
      f'JAX_PLATFORMS = {given}: must name a platform of '
      f'this machine, as cpu, or be unset ({text})'
    ) from error
