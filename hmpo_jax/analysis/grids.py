"""What a report says of the grids that variants were tuned on."""

from collections.abc import Iterator

import numpy as np
import pandas

from hmpo_jax.analysis import statistics
from hmpo_jax.analysis import text

_POINT = ['learning_rate', 'eps']


def section(about: dict, grid: pandas.DataFrame) -> Iterator[str]:
  """The grids, and what two tuned arms differ by at each of their points.

  Args:
    about: what plan.json holds.
    grid: what tuning.csv holds, one row a run.
  """
  rows = (
    grid.assign(chosen=grid['chosen'].astype(bool))
    .groupby(['task', 'variant', *_POINT], sort=False)
    .agg(
      n=('seed', 'count'),
      area=('area', 'mean'),
      failed=('failed', 'sum'),
      clip=('clip_frac', 'mean'),
      chosen=('chosen', 'any'),
    )
    .reset_index()
  )
  more = (
    ' Where a point has more seeds than others, the further ones chose '
    'between it and the other one that has them.'
    if rows['n'].nunique() > 1
    else ''
  )
  yield f'### The tuned grid\n\nMeans over the tuning seeds.{more}'
  yield text.table(
    [
      'task',
      'variant',
      'learning rate',
      'eps',
      'area',
      'clipped',
      'failed',
      'seeds',
      'chosen',
    ],
    [
      (
        row.task,
        row.variant,
        f'{row.learning_rate:g}',
        f'{row.eps:g}',
        text.number(row.area, '.3f'),
        text.number(row.clip, '.1%'),
        int(row.failed),
        row.n,
        '**yes**' if row.chosen else '',
      )
      for row in rows.itertuples()
    ],
  )
  arms = dict.fromkeys(
    (c['variant'], c['baseline']) for c in about['contrasts']
  )
  for variant, baseline in arms:
    yield from _contrast(grid, variant, baseline, about['alpha'])


def _contrast(grid, variant, baseline, alpha):
  """A contrast at each point of both arms' grids, paired by seed."""
  keys = ['task', *_POINT, 'seed']
  one, two = (
    grid[grid['variant'] == name].set_index(keys)['area']
    for name in (variant, baseline)
  )
  both = (one - two).dropna()
  if both.empty:
    return
  rows = []
  for point, differences in both.groupby(level=keys[:-1], sort=True):
    interval = statistics.paired_interval(
      differences.to_numpy(np.float64), alpha
    )
    task, rate, eps = point
    rows.append(
      (
        task,
        f'{rate:g}',
        f'{eps:g}',
        text.signed(interval.mean, '.3f'),
        text.bounds(interval.low, interval.high, '.3f', text.signed),
        interval.n,
      )
    )
  yield (
    f'{variant} - {baseline} at each point that both were run at; '
    f'{1 - alpha:.0%} intervals, which no number of points corrects:'
  )
  yield text.table(
    ['task', 'learning rate', 'eps', 'difference', 'interval', 'seeds'], rows
  )
