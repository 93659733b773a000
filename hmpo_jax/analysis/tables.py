"""Tables over the seeds of each task and variant."""

import numpy as np
import pandas

from hmpo_jax.analysis import measures
from hmpo_jax.analysis import outcomes
from hmpo_jax.analysis import proportions
from hmpo_jax.analysis import records
from hmpo_jax.analysis import statistics
from hmpo_jax.analysis import survival

ARM = ['task', 'variant']


def per_variant(seeds: pandas.DataFrame, alpha: float) -> pandas.DataFrame:
  """Mean of each measure over the runs of a task and variant.

  Of runs that ended, or of all where none has.

  Args:
    seeds: what `outcomes.per_seed` returns.
    alpha: 1 - coverage of the intervals.

  Returns:
    Columns task, variant, column, label, mean, low, high (its interval, within
    what values there can be; NaN of fewer than two runs), deviation, n, least,
    most; no row where n = 0.
  """
  rows = []
  for arm, runs in _arms(records.shown(seeds)):
    for measure in measures.MEASURES:
      values = runs[measure.column].dropna().to_numpy(float)
      if len(values):
        rows.append(
          (
            *arm,
            measure.column,
            measure.label,
            *_summary(measure.key, values, alpha),
          )
        )
  return pandas.DataFrame(
    rows,
    columns=ARM
    + [
      'column',
      'label',
      'mean',
      'low',
      'high',
      'deviation',
      'n',
      'least',
      'most',
    ],
  )


def risk(seeds: pandas.DataFrame, alpha: float) -> pandas.DataFrame:
  """What can go wrong with a variant, of the runs that ended.

  Args:
    seeds: what `outcomes.per_seed` returns.
    alpha: 1 - coverage of the exact intervals of the shares.

  Returns:
    Columns task, variant, n, worst_quartile (mean area of the worst quarter of
    the seeds), drawdown (largest of any), failed, then collapsed and exploded,
    each with _low and _high: number of runs and bounds on their share.
  """
  rows = []
  for arm, runs in _arms(seeds[records.has_ended(seeds)]):
    row = dict(zip(ARM, arm)) | {
      'n': len(runs),
      'worst_quartile': statistics.worst_quartile_mean(runs['area'].array),
      'drawdown': runs['drawdown'].max(),
      'failed': int((runs['state'] == records.FAILED).sum()),
    }
    rows.append(
      row
      | _share('collapsed', runs['collapsed'], alpha)
      | _share('exploded', runs['qk/exploded:max'], alpha)
    )
  return pandas.DataFrame(rows)


def targets(
  seeds: pandas.DataFrame, horizon: float, alpha: float
) -> pandas.DataFrame:
  """Time to the target: restricted means over the runs that ended.

  Args:
    seeds: what `outcomes.per_seed` returns.
    horizon: steps at which runs are censored.
    alpha: 1 - coverage of the intervals.

  Returns:
    Columns task, variant, unit (steps, episodes, tokens), mean, low, high,
    horizon, n, reached (before that horizon).
  """
  rows = []
  for (task, variant), runs in _arms(seeds[records.has_ended(seeds)]):
    for unit in outcomes.UNITS:
      times = runs[f'{unit}_to_target'].to_numpy(float)
      limit = (
        horizon
        if unit == 'steps'
        else runs.get(f'{unit}_horizon', _NOTHING).max()
      )
      if np.isnan(times).any() or not limit > 0:
        continue
      reached = (runs['reached'] == 1).to_numpy()
      interval = survival.restricted_mean(times, reached, limit, alpha)
      bounds = interval[1:3] if len(runs) > 1 else (np.nan, np.nan)
      rows.append(
        (
          task,
          variant,
          unit,
          interval.mean,
          *bounds,
          limit,
          len(runs),
          int(reached.sum()),
        )
      )
  return pandas.DataFrame(
    rows,
    columns=ARM + ['unit', 'mean', 'low', 'high', 'horizon', 'n', 'reached'],
  )


def counted(runs: pandas.DataFrame) -> str:
  """How many runs are in which state: '9 finished, 1 failed'."""
  counts = runs['state'].value_counts()
  return ', '.join(
    f'{counts[state]} {state}' for state in records.STATES if state in counts
  )


def smoothed(plan: records.Plan, key: str, window: int) -> pandas.DataFrame:
  """Rolling mean of a metric in each run, over so many steps or fewer.

  Returns:
    RUN, step and key; no row where the metric isn't recorded.
  """
  columns = records.RUN + ['step', key]
  if key not in plan.steps:
    return pandas.DataFrame(columns=columns)
  steps = records.shown(plan.runs)[records.RUN].merge(
    plan.steps[columns], on=records.RUN
  )
  means = steps.groupby(records.RUN)[key].rolling(window, min_periods=1).mean()
  return steps.assign(**{key: means.droplevel(records.RUN)})


def across_seeds(steps: pandas.DataFrame, key: str) -> pandas.DataFrame:
  """Columns task, variant, step, mean, deviation (NaN of one run) and n."""
  grouped = steps.groupby(ARM + ['step'], sort=False)[key]
  return grouped.agg(mean='mean', deviation='std', n='count').reset_index()


_NOTHING = pandas.Series([np.nan])


def _arms(table):
  """Each task and variant with its rows, in the order of the table."""
  return table.groupby(ARM, sort=False)


def _summary(key, values, alpha):
  interval = _interval(key, values, alpha)
  bounds = (
    (interval.low, interval.high) if len(values) > 1 else (np.nan, np.nan)
  )
  deviation = np.std(values, ddof=1) if len(values) > 1 else np.nan
  return (
    interval.mean,
    *bounds,
    deviation,
    len(values),
    values.min(),
    values.max(),
  )


def _interval(key, values, alpha):
  """Exact for what happens in a run or not, else of Student within bounds."""
  if measures.is_event(key):
    return proportions.proportion_interval(
      int(values.sum()), len(values), alpha
    )
  low, high = measures.bounds(key)
  # A failed run may count as less than a measured one can be.
  bounds = min(low, values.min()), max(high, values.max())
  return statistics.mean_interval(values, alpha, bounds)


def _share(name, values, alpha):
  """Number of runs and exact interval of their share; NaN if not recorded."""
  known = values.dropna()
  if known.empty:
    return {name: np.nan, f'{name}_low': np.nan, f'{name}_high': np.nan}
  count = int(known.sum())
  interval = proportions.proportion_interval(count, len(known), alpha)
  return {
    name: count,
    f'{name}_low': interval.low,
    f'{name}_high': interval.high,
  }
