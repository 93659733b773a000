"""Whether arms of one seed saw the same samples, and until when."""

from collections.abc import Sequence

import numpy as np
import pandas

from hmpo_jax.analysis import records

_DIGEST = 'rollout/digest'


def first_rollouts(plan: records.Plan) -> pandas.DataFrame:
  """Whether all arms of a task and seed sampled the same first rollout.

  Args:
    plan: what `records.read` returns.

  Returns:
    Columns task, seed, arms (that have a first step), equal; no row where no
    digest is recorded or only one arm has begun.
  """
  if _DIGEST not in plan.steps:
    return pandas.DataFrame(columns=['task', 'seed', 'arms', 'equal'])
  first = plan.steps[(plan.steps['step'] == 1) & plan.steps[_DIGEST].notna()]
  digests = first.groupby(['task', 'seed'])[_DIGEST].agg(['count', 'nunique'])
  digests = digests[digests['count'] > 1].reset_index()
  return pandas.DataFrame(
    {
      'task': digests['task'],
      'seed': digests['seed'],
      'arms': digests['count'],
      'equal': digests['nunique'] == 1,
    }
  )


def divergence(
  plan: records.Plan, variant: str, baseline: str, tasks: Sequence[str]
) -> float:
  """Median step, over tasks and seeds, at which the tokens of two arms part.

  inf where they never part in the steps that both have. NaN without digests or
  pairs.
  """
  if _DIGEST not in plan.steps:
    return np.nan
  keys = ['task', 'seed', 'step']
  here = plan.steps[plan.steps['task'].isin(tasks)]
  one, two = (
    here.loc[here['variant'] == arm, keys + [_DIGEST]]
    for arm in (variant, baseline)
  )
  both = one.merge(two, on=keys).dropna()
  parts = [
    _first_difference(rows) for _, rows in both.groupby(['task', 'seed'])
  ]
  return float(np.median(parts)) if parts else np.nan


def _first_difference(rows):
  differ = rows[f'{_DIGEST}_x'] != rows[f'{_DIGEST}_y']
  return rows.loc[differ, 'step'].min() if differ.any() else np.inf
