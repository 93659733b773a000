"""What a report says of ladders of learning rates."""

from collections.abc import Iterator

import pandas

from hmpo_jax.analysis import ladder
from hmpo_jax.analysis import text

_AREA, _RATE, _RUNG = '.3f', '.2g', '.2f'


def sentences(about: dict, table: pandas.DataFrame) -> Iterator[str]:
  """How high each variant goes.

  Args:
    about: what plan.json holds.
    table: what `rungs.per_variant` returns.
  """
  for name, rows in table.groupby('ladder', sort=False):
    rates = list(about['ladders'][name].values())
    arms = list(rows.itertuples())
    areas = '; '.join(
      f'{row.variant} {text.number(row.area, _AREA)} '
      f'({text.bounds(row.area_low, row.area_high, _AREA)}, n = {row.n})'
      for row in arms
    )
    halves = '; '.join(f'{row.variant} at {_half(row)}' for row in arms)
    yield (
      f'On ladder {name}, of learning rates {rates[0]:g} to '
      f'{rates[-1]:.3g}, the area under the held-out reward, mean over '
      f'the {len(rates)} rungs, was {areas}.'
    )
    yield f'On ladder {name}, half of the seeds collapse: {halves}.'


def section(
  about: dict, table: pandas.DataFrame, seeds: pandas.DataFrame
) -> Iterator[str]:
  """Tables of the ladders, with ties and what the ladder can't tell.

  Args:
    about: what plan.json holds.
    table: what `rungs.per_variant` returns.
    seeds: what `rungs.per_seed` returns.
  """
  if table.empty:
    return
  yield (
    '## Ladders\n\nOne task at several learning rates. The critical rung '
    'of a seed is the largest rate below the first at which it collapses, '
    'as log2; a seed that collapses on the lowest rung counts one spacing '
    'below it, one that never does as the highest. Half of the seeds '
    'collapse at the median of their thresholds, halfway between rungs, '
    'with the interval of the sign test, whose ends are rungs.'
  )
  yield text.table(
    [
      'ladder',
      'variant',
      'seeds',
      'area over the rungs',
      'critical rung',
      'below the ladder',
      'above it',
      'half collapse at',
      'interval',
    ],
    [
      (
        row.ladder,
        row.variant,
        row.n,
        text.mean_and_interval(row.area, row.area_low, row.area_high, _AREA),
        text.mean_and_interval(row.rung, row.rung_low, row.rung_high, _RUNG),
        row.below,
        row.above,
        _rate(row.half),
        f'{_rate(row.half_low)} to {_rate(row.half_high)}',
      )
      for row in table.itertuples()
    ],
  )
  yield from _counts(about, seeds)


def _counts(about, seeds):
  """How many seeds have each critical rung: ties are what this shows."""
  for name, rates in about['ladders'].items():
    here = seeds[seeds['ladder'] == name]
    rates = list(rates.values())
    every = [
      ladder.critical_rung(rates, [j >= i for j in range(len(rates))]).rung
      for i in range(len(rates) + 1)
    ]
    body = []
    for variant, found in here.groupby('variant', sort=False):
      counts = [int((abs(found['rung'] - rung) < 1e-9).sum()) for rung in every]
      body.append([variant, *(count or '' for count in counts)])
    header = ['below', *(f'{rate:.3g}' for rate in rates)]
    if body:
      yield (
        f'Seeds by critical rung on {name}; the last rung counts those '
        'that never collapsed:'
      )
      yield text.table(['variant', *header], body)


def _half(row):
  return f'{_rate(row.half)} ({_rate(row.half_low)} to {_rate(row.half_high)})'


def _rate(value):
  if value == 0:
    return 'below the ladder'
  if value == float('inf'):
    return 'above the ladder'
  return text.number(value, _RATE)
