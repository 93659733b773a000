"""Policy optimization with power means of the importance ratios, in JAX.

`power_mean_loss`, `log_power_mean`, `group_advantages`, `qk_clip` and
`muon_clip` are functions of arrays for a trainer of one's own;
`train(default_config(), workdir)` runs the one that is here. Each is imported
when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from hmpo_jax.config.keys import default_config as default_config
  from hmpo_jax.kernels.advantages import group_advantages as group_advantages
  from hmpo_jax.kernels.losses import power_mean_loss as power_mean_loss
  from hmpo_jax.kernels.means import log_power_mean as log_power_mean
  from hmpo_jax.optim.muon_clip import muon_clip as muon_clip
  from hmpo_jax.optim.muon_clip import qk_clip as qk_clip
  from hmpo_jax.run.trainer import train as train

__version__ = '0.1.0'

_MODULES = {
  'default_config': 'config.keys',
  'group_advantages': 'kernels.advantages',
  'log_power_mean': 'kernels.means',
  'muon_clip': 'optim.muon_clip',
  'power_mean_loss': 'kernels.losses',
  'qk_clip': 'optim.muon_clip',
  'train': 'run.trainer',
}
__all__ = list(_MODULES)


def __getattr__(name):
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'hmpo_jax.{_MODULES[name]}')
  return getattr(module, name)


def __dir__():
  return sorted({*globals(), *_MODULES})
