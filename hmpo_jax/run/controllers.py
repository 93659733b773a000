"""Controllers to name in config.control.function."""

import collections
from collections.abc import Mapping

import jax
import numpy as np

from hmpo_jax.config import traced
from hmpo_jax.kernels import exponents
from hmpo_jax.training import update

_after_step = jax.jit(exponents.after_step)
_WINDOW = 20  # records that the detector looks at


class Adaptive:
  """The decisions of exponent.kind='adaptive', made outside of the program.

  It asks for the p that the adaptive order would have in the next step. Over
  the records of an adaptive run these are the orders that it used; in charge of
  a run with a fixed order it does the same from outside.
  """

  def __init__(self, config):
    """Starts at config.loss.p, with the keys of config.exponent."""
    config.exponent.kind = 'adaptive'
    self._settings = traced.hparams(config).exponent
    self._state = exponents.init(self._settings)

  def __call__(self, record: Mapping) -> dict[str, float]:
    """The order of the next step, from the record of this one."""
    skipped = sum(record[f'skipped/{c}'] for c in update.NUMERICAL_CAUSES)
    # Without a sound update the record repeats the gap of the step before.
    has_gap = skipped < len(record['qk/max_logit_per_update'])
    gap = np.float32(record['agm/log_gap'] if has_gap else np.nan)
    self._state, _ = _after_step(self._settings, self._state, gap)
    return {'p': float(self._state.p)}


class FullConvergence:
  """Asks for the end of a run as the detector of AGM controllers does.

  The rate of a record is 1 - mean_t |a_t - h_t| / (|a_t| + |h_t| + 1e-8) over
  the steps t of its two histories, 0.5 where they are empty; 20 records with a
  mean rate above 0.99 and a variance below 1e-6 are "full convergence". The
  nearer updates stay to the policy that sampled the sooner that holds, whatever
  the run learns, so this stands here to be replayed, not to be obeyed.
  """

  suffix = ''  # of the histories

  def __init__(self):
    self._rates: collections.deque = collections.deque(maxlen=_WINDOW)

  def __call__(self, record: Mapping) -> dict:
    """Whether to end the run, from the record of a step."""
    a, h = (
      np.array(record[f'{name}_history{self.suffix}'])
      for name in ('arithmetic', 'harmonic')
    )
    distances = np.abs(a - h) / (np.abs(a) + np.abs(h) + 1e-8)
    self._rates.append(1 - np.mean(distances) if distances.size else 0.5)
    converged = (
      len(self._rates) == _WINDOW
      and np.mean(self._rates) > 0.99
      and np.var(self._rates) < 1e-6
    )
    return {
      'early_stop': {
        'should_stop': bool(converged),
        'reason': 'agm_full_convergence',
      }
    }


class ClipNormalisedConvergence(FullConvergence):
  """The same of the histories in half-widths of the clip range."""

  suffix = '_clip'
