"""Differences between two variants of a plan, seed by seed."""

import functools

import numpy as np
import pandas

from hmpo_jax.analysis import pairing
from hmpo_jax.analysis import power
from hmpo_jax.analysis import records
from hmpo_jax.analysis import statistics
from hmpo_jax.analysis import text

EXPLORATORY, DIFFERENT = 'exploratory', 'different'


def make(plan: records.Plan, seeds: pandas.DataFrame) -> pandas.DataFrame:
  """One row a contrast: those of the plan, then every other variant.

  A seed counts where both arms have ended, on every task; its area is the mean
  over the tasks, and it has collapsed if it has on any. There is no verdict in
  an exploratory plan, on an exploratory variant, or before all seeds of the
  plan have ended: who looks early and often finds differences by chance.
  Holm's correction is for all contrasts that get a verdict in the end, also
  those that can't be tested yet.

  Args:
    plan: what `records.read` returns.
    seeds: what `outcomes.per_seed` returns.

  Returns:
    Columns name, variant, baseline, outcome, n, planned, mean, low, high (of
    variant - baseline at the plan's alpha), p, adjusted, verdict, smallest (the
    smallest difference that the seeds can show), gain (by what factor pairing
    cut the seeds that are needed), correlation, diverge (median step at which
    the arms' tokens part). NaN where the seeds can't tell.
  """
  rows = [
      _row(plan, seeds, contrast, is_listed=True)
      for contrast in plan.about['contrasts']
  ] + [
      _row(plan, seeds, contrast, is_listed=False)
      for contrast in _others(plan.about)
  ]
  table = pandas.DataFrame(rows, columns=_COLUMNS)
  table = table.astype(dict.fromkeys(_NUMBERS, float))
  return _judged(plan.about, table).drop(columns=['low_2alpha', 'high_2alpha'])


def reference(about: dict) -> str:
  """The variant that others are shown against."""
  if about['contrasts']:
    return about['contrasts'][0]['baseline']
  return next(iter(about['variants']))


def family_size(about: dict) -> int:
  """Number of contrasts that get a verdict, for which Holm corrects."""
  return sum(not _is_exploratory(about, (c['variant'], c['baseline']))
             for c in about['contrasts'])


def pairs(plan: records.Plan, seeds: pandas.DataFrame, variant: str,
          baseline: str, outcome: str) -> tuple[np.ndarray, np.ndarray]:
  """[n] outcomes of two variants, of the seeds that both have ended with."""
  both = [_by_seed(plan, seeds, name, outcome) for name in (variant, baseline)]
  joined = pandas.concat(both, axis=1, join='inner').sort_index()
  return joined.iloc[:, 0].to_numpy(float), joined.iloc[:, 1].to_numpy(float)


_NUMBERS = ('mean', 'low', 'high', 'low_2alpha', 'high_2alpha', 'p', 'adjusted',
            'smallest', 'gain', 'correlation', 'diverge')
_COLUMNS = ('name', 'variant', 'baseline', 'outcome', 'n', 'planned', 'mean',
            'low', 'high', 'low_2alpha', 'high_2alpha', 'p', 'adjusted',
            'verdict', 'smallest', 'gain', 'correlation', 'diverge')


def _by_seed(plan, seeds, variant, outcome):
  """Outcome of each seed that has ended on every task."""
  chosen = seeds[(seeds['variant'] == variant) & records.has_ended(seeds)]
  column = {'area': 'area', 'collapse': 'collapsed'}[outcome]
  grouped = chosen.groupby('seed')[column]
  values = grouped.mean() if outcome == 'area' else grouped.max()
  return values[grouped.count() == len(plan.about['tasks'])]


def _others(about):
  """Contrasts in area with the reference that are not planned, either way."""
  against = reference(about)
  planned = [{c['variant'], c['baseline']}
             for c in about['contrasts']
             if c['outcome'] == 'area']
  for variant in about['variants']:
    if variant != against and {variant, against} not in planned:
      yield {
          'name': f'{variant} - {against}',
          'variant': variant,
          'baseline': against,
          'outcome': 'area'
      }


def _row(plan, seeds, contrast, is_listed):
  about = plan.about
  arms = contrast['variant'], contrast['baseline']
  first, second = pairs(plan, seeds, *arms, contrast['outcome'])
  row = {
      **{
          key: contrast[key] for key in _COLUMNS[:4]
      },
      'n': len(first),
      'planned': len(about['seeds']),
      'p': np.nan,
      'verdict': '' if is_listed else EXPLORATORY,
      'diverge': pairing.divergence(plan, *arms),
  }
  if _is_exploratory(about, arms):
    row['verdict'] = EXPLORATORY
  if len(first):
    measured = _area if contrast['outcome'] == 'area' else _collapse
    row |= measured(first, second, about, max(family_size(about), 1))
  if not is_listed:
    row['p'] = np.nan  # its interval is enough to look at
  return row


def _is_exploratory(about, arms):
  """Whether a contrast is one that the plan makes no claim about."""
  return about['exploratory'] or any(
      about['variants'][arm].get('exploratory') for arm in arms)


def _area(first, second, about, family):
  difference, alpha = first - second, about['alpha']
  interval = functools.partial(
      statistics.paired_interval,
      difference,
      bounds=(-_span(about), _span(about)))
  found = _interval(interval(alpha), interval(2 * alpha))
  if len(difference) > 1:
    found |= {
        'p': statistics.sign_flip(difference),
        'smallest': _smallest(difference, about, family),
        'gain': statistics.pairing_gain(first, second),
        'correlation': statistics.correlation(first, second),
    }
  return found


def _span(about):
  """Largest difference of two areas: of rewards, and what a failure counts."""
  return max(1., about['failure_reward']) - min(0., about['failure_reward'])


def _smallest(difference, about, family):
  """Smallest area that is found; NaN where the seeds can show none."""
  n = len(difference)
  if not power.can_answer(n, family, about['alpha']):
    return np.nan
  found = power.smallest_detectable(
      float(np.std(difference, ddof=1)), n, about['alpha'], family)
  return found if found <= _span(about) else np.nan


def _collapse(first, second, about, family):
  first, second, alpha = first > 0, second > 0, about['alpha']
  narrow = statistics.binary_difference(first, second, 2 * alpha)
  interval = statistics.binary_difference(first, second, alpha)
  n = len(first)
  # The exact test needs this many seeds that differ, all in one direction.
  needed = next(m for m in range(1, 64) if power.can_answer(m, family, alpha))
  return _interval(interval, narrow) | {
      'p': statistics.paired_binary(first, second),
      'smallest': needed / n if needed <= n else np.nan
  }


def _interval(interval, narrow):
  return {
      'mean': interval.mean,
      'low': interval.low,
      'high': interval.high,
      'low_2alpha': narrow.low,
      'high_2alpha': narrow.high
  }


def _judged(about, table):
  """Holm's correction and the verdicts."""
  tested = table['verdict'] == ''
  p = table.loc[tested, 'p']
  is_open = table['n'] < table['planned']
  if tested.any():
    table.loc[tested, 'adjusted'] = statistics.holm(p.to_numpy(float))
  for row in table[tested].itertuples():
    if is_open[row.Index]:
      verdict = f'open: {row.n} of {row.planned} seeds'
    elif np.isnan(row.p):
      verdict = f'open: {text.plural(row.n, "seed")} can\'t tell'
    else:
      narrow = statistics.Interval(row.mean, row.low_2alpha, row.high_2alpha,
                                   row.n)
      verdict = statistics.verdict(
          statistics.Interval(row.mean, row.low, row.high, row.n), narrow,
          row.adjusted, about['margin'], about['alpha'])
      if verdict == DIFFERENT and statistics.within(narrow, about['margin']):
        verdict += ', within the margin'
    table.loc[row.Index, 'verdict'] = verdict
  return table
