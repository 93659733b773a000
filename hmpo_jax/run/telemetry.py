"""The fields of a record that external AGM controllers read, by their names.

They stand beside the metrics from which they are made. A controller takes flat
lists of numbers, numbers and booleans, never null; agm_record.schema.json holds
what every record of metrics.jsonl obeys, field by field.
"""

from collections.abc import Mapping
import importlib.resources
import json

import numpy as np

from hmpo_jax.run import records as run_records

# What the histories over steps are made of: of a list, its first entry.
_SOURCES = (
  {
    'arithmetic_history': 'agm/arithmetic',
    'harmonic_history': 'agm/harmonic',
  },
  {
    'arithmetic_history_clip': 'agm/arithmetic_iterates_clip',
    'harmonic_history_clip': 'agm/harmonic_iterates_clip',
  },
)
_ITERATES = (
  'agm/arithmetic_iterates',
  'agm/harmonic_iterates',
  'agm/arithmetic_iterates_clip',
  'agm/harmonic_iterates_clip',
)
_LEAST_RETURN = 1e-8  # below it a relative change means nothing


def fields(
  record: Mapping,
  previous: Mapping,
  *,
  step: int,
  iterations: int,
  history: int,
) -> dict:
  """What controllers read of a step.

  Args:
    record: metrics of the step with its last held-out ones.
    previous: record of the step before; empty before the first.
    step: finished steps, this one included.
    iterations: K, of those that the program made.
    history: steps that the histories reach back.

  Returns:
    Values by name:
      agm/arithmetic_iterates, agm/harmonic_iterates, and with _clip the
        normalised ones: [K + 1], see `kernels.agm.iterates`.
      arithmetic_history, harmonic_history, and with _clip: see `histories`.
      td_mean, td_var: of the advantages of the rollout, in their unit.
      q_rel_change: |R - R'| / |R'| of the mean reward R, which estimates the
        return, and the R' of the step before; 0 in the first step.
      train_reward_mean: R; eval_reward: the last held-out one; in [0, 1].
      eval_is_new: this step measured eval_reward.
      muon_clip_active: the QK-clip changed an update of this step.
      muon_clip_rate: share of the step's updates that it changed.
  """
  reward = float(record['reward/mean'])
  # Without a sound update nothing was clipped.
  rate = np.nan_to_num(record['qk/clipped_frac'])
  before = previous.get('train_reward_mean', reward)
  change = abs(reward - before) / max(abs(before), _LEAST_RETURN)
  return (
    cut(record, iterations)
    | histories(record, previous, history)
    | {
      'td_mean': record['advantage/mean'],
      'td_var': np.float32(record['advantage/std']) ** 2,
      'q_rel_change': np.float32(change),
      'train_reward_mean': record['reward/mean'],
      'eval_reward': record['eval/reward'],
      'eval_is_new': record['eval/step'] == step,
      'muon_clip_active': bool(rate > 0),
      'muon_clip_rate': rate,
    }
  )


def cut(values: Mapping, iterations: int) -> dict:
  """The iterates of a step: start and K = `iterations` later ones."""
  return {name: values[name][: iterations + 1] for name in _ITERATES}


def histories(record: Mapping, previous: Mapping, length: int) -> dict:
  """A and H of the last steps, newest last; with _clip the normalised ones.

  A step without a sound update measured neither and adds nothing.

  Args:
    record: metrics of the step.
    previous: record of the step before; empty before the first.
    length: steps that a history reaches back.

  Returns:
    Lists of at most `length` numbers by name.
  """
  result = {}
  for sources in _SOURCES:
    new = {
      name: run_records.plain(np.ravel(record[source])[:1])
      for name, source in sources.items()
    }
    is_measured = np.all(np.isfinite(list(new.values())))
    for name, value in new.items():
      known = previous.get(name, [])
      result[name] = (known + value)[-length:] if is_measured else known
  return result


def schema() -> dict:
  """The JSON Schema of a record."""
  file = importlib.resources.files('hmpo_jax.run') / 'agm_record.schema.json'
  return json.loads(file.read_text(encoding='utf-8'))
