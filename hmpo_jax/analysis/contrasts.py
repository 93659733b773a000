"""Differences between two variants of a plan, seed by seed."""

from collections.abc import Mapping
import functools

import numpy as np
import pandas

from hmpo_jax.analysis import kinds
from hmpo_jax.analysis import pairing
from hmpo_jax.analysis import power
from hmpo_jax.analysis import proportions
from hmpo_jax.analysis import records
from hmpo_jax.analysis import rungs
from hmpo_jax.analysis import statistics
from hmpo_jax.analysis import text

EXPLORATORY, DIFFERENT = 'exploratory', 'different'
DIFFERENT_WITHIN = f'{DIFFERENT}, within the margin'


def make(plan: records.Plan, seeds: pandas.DataFrame) -> pandas.DataFrame:
  """One row a contrast: those of the plan, then every other variant.

  A seed counts where both arms have ended, on every task of the contrast's
  place. There is no verdict in an exploratory plan, on an exploratory variant,
  or before all seeds of the plan have ended: who looks early and often finds
  differences by chance. Holm's correction is for all contrasts that get a
  verdict in the end, also those that can't be tested yet, and for those of
  other plans that belong to the plan's family.

  Args:
    plan: what `records.read` returns.
    seeds: what `outcomes.per_seed` returns.

  Returns:
    Columns name, variant, baseline, outcome, task, minus, n, planned, mean,
    low, high (of variant - baseline at the plan's alpha), p, adjusted, verdict,
    smallest (the smallest difference that the seeds can show), gain (by what
    factor pairing cut the seeds that are needed), correlation, diverge (median
    step at which the arms' tokens part). NaN where the seeds can't tell.
  """
  rows = [
    _row(plan, seeds, contrast, is_listed=True)
    for contrast in plan.about['contrasts']
  ] + [
    _row(plan, seeds, contrast, is_listed=False)
    for contrast in _others(plan.about)
  ]
  table = pandas.DataFrame(rows, columns=_COLUMNS)
  table = table.astype(dict.fromkeys(_TESTED + _BESIDE, float))
  return _judged(plan.about, table).drop(columns=['low_2alpha', 'high_2alpha'])


def reference(about: dict) -> str:
  """The variant that others are shown against."""
  if about['reference']:
    return about['reference']
  if about['contrasts']:
    return about['contrasts'][0]['baseline']
  return next(iter(about['variants']))


def family_size(about: dict) -> int:
  """Number of contrasts that get a verdict, for which Holm corrects."""
  own = sum(
    not _is_exploratory(about, (c['variant'], c['baseline']))
    for c in about['contrasts']
  )
  return max(own, about['family'] if own else 0)


def pairs(
  plan: records.Plan, seeds: pandas.DataFrame, contrast: Mapping[str, str]
) -> tuple[np.ndarray, np.ndarray]:
  """[n] outcomes of both variants, of the seeds that both have ended with.

  Of an interaction each is what its task's outcome exceeds the other's by.

  Args:
    plan: what `records.read` returns.
    seeds: what `outcomes.per_seed` returns.
    contrast: variant, baseline, outcome, task and minus, as in plan.json.
  """
  where = kinds.places(plan.about)
  place = contrast['task'] or next(iter(where))

  def of(variant, name):
    chosen = seeds[
      (seeds['variant'] == variant)
      & records.has_ended(seeds)
      & seeds['task'].isin(where.get(name, [name]))
    ]
    return rungs.by_seed(plan.about, chosen, name, contrast['outcome'])

  both = []
  for variant in (contrast['variant'], contrast['baseline']):
    values = of(variant, place)
    if contrast['minus']:
      values = (values - of(variant, contrast['minus'])).dropna()
    both.append(values)
  joined = pandas.concat(both, axis=1, join='inner').sort_index()
  return joined.iloc[:, 0].to_numpy(float), joined.iloc[:, 1].to_numpy(float)


_NAMED = ('name', 'variant', 'baseline', 'outcome', 'task', 'minus')
_TESTED = (
  'mean',
  'low',
  'high',
  'low_2alpha',
  'high_2alpha',
  'p',
  'adjusted',
)
_BESIDE = ('smallest', 'gain', 'correlation', 'diverge')
_COLUMNS = (*_NAMED, 'n', 'planned', *_TESTED, 'verdict', *_BESIDE)


def _others(about):
  """Contrasts with the reference that are not planned, either way.

  In area, and on a ladder in the critical rung too.
  """
  against, where = reference(about), kinds.places(about)
  only = ''.join(where) if len(where) == 1 else ''
  planned = [
    ({c['variant'], c['baseline']}, c['outcome'], c['task'] or only)
    for c in about['contrasts']
    if not c['minus']
  ]
  for place in where:
    for outcome in ('area', 'rung') if place in about['ladders'] else ('area',):
      for variant in about['variants']:
        if (
          variant != against
          and ({variant, against}, outcome, place) not in planned
        ):
          task = '' if only else place
          yield {
            'name': kinds.name_of(variant, against, task, ''),
            'variant': variant,
            'baseline': against,
            'outcome': outcome,
            'task': task or only,
            'minus': '',
          }


def _row(plan, seeds, contrast, is_listed):
  about = plan.about
  arms = contrast['variant'], contrast['baseline']
  first, second = pairs(plan, seeds, contrast)
  row = {
    **{key: contrast[key] for key in _NAMED},
    'n': len(first),
    'planned': len(about['seeds']),
    'p': np.nan,
    'verdict': '' if is_listed else EXPLORATORY,
    'diverge': pairing.divergence(plan, *arms, _tasks(about, contrast)),
  }
  if _is_exploratory(about, arms):
    row['verdict'] = EXPLORATORY
  if len(first):
    measured = _event if _kind(contrast).is_event else _number
    row |= measured(first, second, about, contrast)
  if not is_listed:
    row['p'] = np.nan  # its interval is enough to look at
  return row


def _is_exploratory(about, arms):
  """Whether a contrast is one that the plan makes no claim about."""
  return about['exploratory'] or any(
    about['variants'][arm].get('exploratory') for arm in arms
  )


def _kind(contrast):
  return kinds.KINDS[contrast['outcome']]


def _tasks(about, contrast):
  """Of both places of a contrast."""
  where = kinds.places(about)
  named = [contrast['task'] or next(iter(where)), contrast['minus']]
  return [task for name in named if name for task in where.get(name, [name])]


def _number(first, second, about, contrast):
  """What is told of an outcome that is a number."""
  difference, alpha = first - second, about['alpha']
  span = _span(about, contrast)
  interval = functools.partial(
    statistics.paired_interval, difference, bounds=(-span, span)
  )
  row = _interval(interval(alpha), interval(2 * alpha))
  if len(difference) > 1:
    row |= {
      'p': statistics.sign_flip(difference),
      'smallest': _smallest(difference, about, span),
      'gain': statistics.pairing_gain(first, second),
      'correlation': statistics.correlation(first, second),
    }
  return row


def _span(about, contrast):
  """Largest difference that there can be: of rewards, or of rungs."""
  outcome, places = contrast['outcome'], [contrast['task'], contrast['minus']]
  if outcome == 'rung':
    ranges = [rungs.range_of(about, name) for name in places if name]
    return sum(high - low for low, high in ranges)
  if outcome == 'exact_area':
    low, high = 0.0, 1.0
  else:
    low, high = (
      min(0.0, about['failure_reward']),
      max(1.0, about['failure_reward']),
    )
  return (high - low) * (2 if contrast['minus'] else 1)


def _smallest(difference, about, span):
  """Smallest difference that is found; NaN where the seeds can show none."""
  n, family = len(difference), max(family_size(about), 1)
  if not power.can_answer(n, family, about['alpha']):
    return np.nan
  least = power.smallest_detectable(
    float(np.std(difference, ddof=1)), n, about['alpha'], family
  )
  return least if least <= span else np.nan


def _event(first, second, about, _):
  """What is told of an outcome that happens or not."""
  first, second, alpha = first > 0, second > 0, about['alpha']
  family = max(family_size(about), 1)
  narrow = proportions.binary_difference(first, second, 2 * alpha)
  interval = proportions.binary_difference(first, second, alpha)
  n = len(first)
  # The exact test needs this many seeds that differ, all in one direction.
  needed = next(m for m in range(1, 64) if power.can_answer(m, family, alpha))
  return _interval(interval, narrow) | {
    'p': proportions.paired_binary(first, second),
    'smallest': needed / n if needed <= n else np.nan,
  }


def _interval(interval, narrow):
  return {
    'mean': interval.mean,
    'low': interval.low,
    'high': interval.high,
    'low_2alpha': narrow.low,
    'high_2alpha': narrow.high,
  }


def _judged(about, table):
  """Holm's correction and the verdicts."""
  tested = table['verdict'] == ''
  is_open = table['n'] < table['planned']
  # What may still change must not decide on what is known.
  p = table.loc[tested, 'p'].mask(is_open[tested])
  if tested.any():
    table.loc[tested, 'adjusted'] = statistics.holm(
      p.to_numpy(float), about['family']
    )
  for row in table[tested].itertuples():
    if is_open[row.Index]:
      verdict = f'open: {row.n} of {row.planned} seeds'
    elif np.isnan(row.p):
      verdict = f"open: {text.plural(row.n, 'seed')} can't tell"
    else:
      margin = about['margins'][row.outcome]
      narrow = statistics.Interval(
        row.mean, row.low_2alpha, row.high_2alpha, row.n
      )
      verdict = statistics.verdict(
        statistics.Interval(row.mean, row.low, row.high, row.n),
        narrow,
        row.adjusted,
        margin,
        about['alpha'],
      )
      if verdict == DIFFERENT and statistics.within(narrow, margin):
        verdict = DIFFERENT_WITHIN
    table.loc[row.Index, 'verdict'] = verdict
  return table
