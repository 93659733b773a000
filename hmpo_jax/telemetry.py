"""The fields of a record that external AGM controllers read, by their names.

They stand beside the metrics from which they are made. A controller takes flat
lists of numbers, numbers and booleans, never null; agm_record.schema.json holds
what every record of metrics.jsonl obeys, field by field.
"""

from collections.abc import Mapping
import importlib.resources
import json

import numpy as np

_HISTORIES = ('arithmetic_history', 'harmonic_history',
              'arithmetic_history_clip', 'harmonic_history_clip')
_LEAST_RETURN = 1e-8  # below it a relative change means nothing


def fields(record: Mapping, previous: Mapping, iterations: int) -> dict:
  """What controllers read of a step.

  Args:
    record: metrics of the step with its last held-out ones.
    previous: record of the step before; empty before the first.
    iterations: K, of those that the program made.

  Returns:
    Values by name:
      arithmetic_history, harmonic_history, and with _clip the normalised ones:
        [K + 1], see `kernels.agm.histories`.
      td_mean, td_var: of the advantages of the rollout, in their unit.
      q_rel_change: |R - R'| / |R'| of the mean reward R, which estimates the
        return, and the R' of the step before; 0 in the first step.
      train_reward_mean: R; eval_reward: the last held-out one; in [0, 1].
      muon_clip_active: the QK-clip changed an update of this step.
      muon_clip_rate: share of the step's updates that it changed.
  """
  reward = float(record['reward/mean'])
  # Without a sound update nothing was clipped.
  rate = np.nan_to_num(record['qk/clipped_frac'])
  before = previous.get('train_reward_mean', reward)
  change = abs(reward - before) / max(abs(before), _LEAST_RETURN)
  return cut(record, iterations) | {
      'td_mean': record['advantage/mean'],
      'td_var': np.float32(record['advantage/std'])**2,
      'q_rel_change': np.float32(change),
      'train_reward_mean': record['reward/mean'],
      'eval_reward': record['eval/reward'],
      'muon_clip_active': bool(rate > 0),
      'muon_clip_rate': rate,
  }


def cut(metrics: Mapping, iterations: int) -> dict:
  """The histories of a step, start and `iterations` iterates."""
  return {name: metrics[name][:iterations + 1] for name in _HISTORIES}


def schema() -> dict:
  """The JSON Schema of a record."""
  file = importlib.resources.files('hmpo_jax') / 'agm_record.schema.json'
  return json.loads(file.read_text(encoding='utf-8'))
