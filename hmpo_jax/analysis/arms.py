"""The section of a report that shows every arm, one measure beside the other."""

from collections.abc import Iterator

from hmpo_jax.analysis import findings as findings_lib
from hmpo_jax.analysis import measures
from hmpo_jax.analysis import tables
from hmpo_jax.analysis import text

_SECTIONS = {
  measures.LEARNING: 'Reward',
  measures.ADVANTAGES: 'Advantages',
  measures.RATIOS: 'Ratios and clipping',
  measures.STABILITY: 'Stability',
  measures.GRADIENTS: 'Gradients and updates',
  measures.MEANS: 'Arithmetic and harmonic means, order',
}
_SPREAD = 'reward/mean:tail'  # last of its section


class ArmTables:
  """Tables with a row for each task and variant."""

  def __init__(self, findings: findings_lib.Findings):
    """Takes what the report has computed."""
    self._plan, self._seeds, self._tables = findings
    self._about = self._plan.about

  def section(self) -> Iterator[str]:
    """The parts of the section."""
    yield '## Variants'
    yield (
      f'Means over seeds ± half of their {1 - self._about["alpha"]:.0%} '
      'interval; its ends where it is uneven, as it is exact (shares of '
      'runs) or cut at the least or the largest value that there can be; '
      'none where all seeds are alike. Of the runs that ended; where none '
      'has, of all, so far.'
    )
    for section, title in _SECTIONS.items():
      body = self._section(measures.of_section(section))
      if body:
        yield f'### {title}\n\n{body}'
      if section == measures.LEARNING:
        yield from self._targets()
        yield from self._risk()

  def _section(self, listed):
    """One row for each task and variant; no column that nobody has."""
    rows = self._tables['variants']
    cells = {
      (row.task, row.variant, row.column): row for row in rows.itertuples()
    }
    listed = [m for m in listed if m.column in set(rows['column'])]
    if not listed:
      return ''
    # Of causes, only those that occurred.
    quiet = rows.groupby('column')['most'].max() == 0
    hidden = [
      m for m in listed if m.key.startswith('skipped/') and quiet[m.column]
    ]
    shown = [m for m in listed if m not in hidden]
    columns = [m.column for m in shown]
    body = []
    for name, runs in self._arms():
      row = [cells.get((*name, m.column)) for m in shown]
      spread = cells.get((*name, _SPREAD))
      body.append(
        [*self._named(name, runs), *map(_cell, shown, row)]
        + [_deviation(spread)] * (_SPREAD in columns)
      )
    note = (
      (
        '\n\nNo update was skipped for: '
        + text.listing(m.key.split('/')[1] for m in hidden)
        + '.'
      )
      if hidden
      else ''
    )
    note += self._undefined(shown)
    header = [*self._names(), *(m.label for m in shown)]
    header += ['its deviation across seeds'] * (_SPREAD in columns)
    return text.table(header, body) + note

  def _undefined(self, shown):
    """How many steps the means stand on, where these are not all."""
    lines = []
    steps = self._plan.steps
    for measure in shown:
      counts = {}
      for (task, variant), _ in self._arms():
        arm = (steps['task'] == task) & (steps['variant'] == variant)
        known, due = measures.defined(steps[arm], measure.key)
        if known < due:
          counts[' '.join(self._prefix((task, variant)))] = f'{known} of {due}'
      if counts:
        lines.append(
          f'*{measure.label}*: '
          + ', '.join(f'{name} {count}' for name, count in counts.items())
        )
    if not lines:
      return ''
    return (
      '\n\nNot every step has these, and their means are over those that '
      'do: ' + '; '.join(dict.fromkeys(lines)) + '.'
    )

  def _targets(self):
    table = self._tables['targets']
    if table.empty:
      return
    yield (
      f'### To a held-out reward of {self._about["target"]:g}\n\n'
      'In two successive evaluations. Means restricted to the horizon, at '
      'which runs that have not reached it are cut off; failed runs never '
      'reach it.'
    )
    rows = []
    for name, runs in table.groupby(tables.ARM, sort=False):
      by_unit = {row.unit: row for row in runs.itertuples()}
      reached = by_unit['steps']
      cells = [
        text.mean_and_interval(row.mean, row.low, row.high, ',.0f')
        + f' of {row.horizon:,.0f}'
        if row
        else text.NOTHING
        for row in map(by_unit.get, ('steps', 'episodes', 'tokens'))
      ]
      rows.append(
        [*self._prefix(name), f'{reached.reached} of {reached.n}', *cells]
      )
    yield text.table(
      [*self._names()[:-1], 'reached', 'steps', 'episodes', 'tokens'], rows
    )

  def _risk(self):
    table = self._tables['risk']
    if table.empty:
      return
    yield (
      f'### Risk\n\nCollapsed: failed, or the mean of two successive '
      'held-out rewards fell below the best earlier such mean, or below '
      'the first of them, by more '
      f'than {self._about["collapse_margin"]:g} and four standard errors. '
      f'Exact {1 - self._about["alpha"]:.0%} intervals.'
    )
    yield text.table(
      [
        *self._names()[:-1],
        'runs',
        'failed',
        'collapsed',
        'interval',
        'logits exploded',
        'interval',
        'area, worst quarter of seeds',
        'largest drawdown',
      ],
      [
        [
          *self._prefix((row.task, row.variant)),
          row.n,
          row.failed,
          text.number(row.collapsed, '.0f'),
          text.bounds(row.collapsed_low, row.collapsed_high, '.0%'),
          text.number(row.exploded, '.0f'),
          text.bounds(row.exploded_low, row.exploded_high, '.0%'),
          text.number(row.worst_quartile, '.3f'),
          text.number(row.drawdown, '.3f'),
        ]
        for row in table.itertuples()
      ],
    )

  def _arms(self):
    return self._seeds.groupby(tables.ARM, sort=False)

  def _names(self):
    task = ['task'] if len(self._about['tasks']) > 1 else []
    return ['variant', *task, 'runs']

  def _named(self, name, runs):
    return [*self._prefix(name), tables.counted(runs)]

  def _prefix(self, name):
    task, variant = name
    return [variant, task] if len(self._about['tasks']) > 1 else [variant]


def _deviation(row):
  return text.NOTHING if row is None else text.number(row.deviation, '.3f')


def _cell(measure, row):
  if row is None:
    return text.NOTHING
  return text.mean_and_interval(row.mean, row.low, row.high, measure.form)
