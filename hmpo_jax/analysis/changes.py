"""From where to where held-out values went, in sentences."""

from collections.abc import Iterator
from collections.abc import Mapping

import pandas

from hmpo_jax.analysis import records
from hmpo_jax.analysis import text

# Column, format, unit of a change and what one of the unit is, name.
_TOLD = (
  ('heldout', '.3f', '', 1.0, 'the held-out reward'),
  (
    'exact',
    '.1%',
    ' points',
    0.01,
    'the share of held-out answers that are right',
  ),
)


def sentences(rows: pandas.DataFrame, named: list[str]) -> Iterator[str]:
  """Start and end of both, which way they went, and where these are opposite.

  Args:
    rows: of one task, what `tables.per_variant` returns.
    named: variants whose numbers are given.
  """
  rows = rows.set_index(['column', 'variant'])
  ways = {}
  for key, form, unit, size, what in _TOLD:
    changes = _rows(rows, f'{key}_change')
    if not changes:
      continue
    ways[key] = {name: change['mean'] for name, change in changes.items()}
    first, last = (_rows(rows, f'{key}_{end}') for end in ('first', 'last'))
    parts = [
      f'{name} from {text.number(first[name]["mean"], form)} to '
      f'{text.number(last[name]["mean"], form)}, by '
      f'{_change(changes[name], size, form.replace("%", "f"), unit)}'
      for name in named
      if name in changes and name in first and name in last
    ]
    yield (
      f'from step 0 to the end {what} {_direction(ways[key])}: '
      f'{"; ".join(parts)}.'
    )
  yield from _opposed(ways)


def so_far(plan: records.Plan, task: str) -> Iterator[str]:
  """Where the held-out reward of variants stands of which no run has ended."""
  ended = plan.runs[records.has_ended(plan.runs)]
  done = set(ended.loc[ended['task'] == task, 'variant'])
  rows = plan.heldout[plan.heldout['task'] == task]
  parts = []
  for variant in plan.about['variants']:
    runs = rows[rows['variant'] == variant]
    if variant in done or runs.empty:
      continue
    last = runs.sort_values('step').groupby('seed').last()
    steps = text.bounds(last['step'].min(), last['step'].max(), '.0f')
    parts.append(
      f'{variant} {text.number(last["reward"].mean(), ".3f")} '
      f'(step {steps}, n = {len(last)})'
    )
  if parts:
    yield (
      'no run of these has ended; when last evaluated, their held-out '
      f'reward was {"; ".join(parts)}.'
    )


def _rows(rows, column):
  """Rows of a column by variant."""
  if column not in rows.index.get_level_values('column'):
    return {}
  return rows.loc[column].to_dict('index')


def _change(row, size, form, unit):
  """A mean change with its interval, in units of a size."""
  mean, low, high = (row[key] / size for key in ('mean', 'low', 'high'))
  ends = (
    'in every run' if low == high else text.bounds(low, high, form, text.signed)
  )
  return f'{text.signed(mean, form)}{unit} ({ends}, n = {row["n"]})'


def _direction(changes: Mapping[str, float]):
  """'rose in a and b and fell in c', or in every arm."""
  ways: dict[str, list[str]] = {}
  for name, change in changes.items():
    way = 'rose' if change > 0 else 'fell' if change < 0 else 'stayed'
    ways.setdefault(way, []).append(name)
  if len(ways) == 1:
    return f'**{"".join(ways)}{" in every arm" if len(changes) > 1 else ""}**'
  return text.listing(
    f'**{way}** in {", ".join(names)}' for way, names in ways.items()
  )


def _opposed(ways):
  """Arms that win reward for fewer right answers, or the other way round."""
  if len(ways) < 2:
    return
  apart = [
    name
    for name, change in ways['heldout'].items()
    if change * ways['exact'].get(name, 0) < 0
  ]
  if apart:
    where = (
      'every arm' if len(apart) == len(ways['heldout']) else text.listing(apart)
    )
    yield (
      f'reward and right answers went **opposite ways** in {where}: more '
      'reward did not mean more right answers there.'
    )
