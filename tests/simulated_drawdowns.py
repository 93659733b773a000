"""Records of runs whose drawdowns have a planted cause."""

import numpy as np
import pandas

from hmpo_jax.analysis import records


def plan(odds, gap, *, num_seeds=12, num_steps=100, seed=0):
  """Two rungs of runs whose reward falls by .3 at a random step, or doesn't.

  Args:
    odds: from the noises [num_steps] by name (variance, kl, ess and planted, of
      deviation 1 and correlated over 10 steps) to the log-odds of a fall.
    gap: from the variance of the log-ratios [num_steps] and the noises to the
      A-H gap.
    num_seeds: of each rung.
    num_steps: of each run.
    seed: of the random numbers.
  """
  rng = np.random.default_rng(seed)
  parts, runs = [], []
  for variant in ('x1', 'x2'):
    for number in range(num_seeds):
      name = {'task': 'sort', 'variant': variant, 'seed': number}
      noise = {
        key: _walk(rng, num_steps)
        for key in ('variance', 'kl', 'ess', 'planted')
      }
      variance = 0.05 * np.exp(0.5 * noise['variance'])
      chance = 1 / (1 + np.exp(-odds(noise) - (variant == 'x2')))
      falls = (rng.random(num_steps) < chance) & (np.arange(num_steps) >= 10)
      reward = 0.6 + 0.01 * rng.normal(size=num_steps)
      parts.append(
        pandas.DataFrame(
          {
            'step': np.arange(1, num_steps + 1),
            'reward/mean': reward - 0.3 * np.maximum.accumulate(falls),
            'log_ratio/row_variance': variance,
            'kl_old/k3': 0.02 * np.exp(0.3 * noise['kl']),
            'token_weight/ess': 1 / (1 + 0.1 * np.exp(0.3 * noise['ess'])),
            'ratio/mean': 1.0,
            'ratio/std': 0.1,
            'agm/log_gap': gap(variance, noise),
            'agm/arithmetic': 1.05,
            'agm/harmonic': 0.95,
            'clip/eps_low': 0.05,
            'clip/eps_high': 0.05,
          }
          | name
        )
      )
      runs.append(name | {'state': 'finished', 'end': num_steps})
  empty = pandas.DataFrame()
  return records.Plan(
    {'collapse_margin': 0.05},
    pandas.DataFrame(runs),
    pandas.concat(parts, ignore_index=True),
    empty,
    None,
    None,
  )


def _walk(rng, num_steps):
  """[num_steps] of deviation 1 whose neighbours correlate by .9."""
  steps = rng.normal(size=num_steps) * (1 - 0.81) ** 0.5
  steps[0] = rng.normal()
  for at in range(1, num_steps):
    steps[at] += 0.9 * steps[at - 1]
  return steps
