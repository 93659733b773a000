"""report.md: the answers first, then what they stand on."""

from collections.abc import Iterator

import numpy as np
import pandas

from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import grids
from hmpo_jax.analysis import kinds
from hmpo_jax.analysis import ladder_words
from hmpo_jax.analysis import measures
from hmpo_jax.analysis import pairing
from hmpo_jax.analysis import pictures
from hmpo_jax.analysis import records
from hmpo_jax.analysis import sentences
from hmpo_jax.analysis import settings
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


class Page:
  """The Markdown of a plan; equal folders give equal bytes."""

  def __init__(
    self,
    plan: records.Plan,
    seeds: pandas.DataFrame,
    found: dict[str, pandas.DataFrame],
  ):
    """Takes what the report has computed.

    Args:
      plan: what `records.read` returns.
      seeds: what `outcomes.per_seed` returns.
      found: variants, risk, targets, contrasts, ladders and rungs, the tables
        of those names.
    """
    self._plan, self._about = plan, plan.about
    self._seeds, self._found = seeds, found
    self._words = sentences.Words(plan, seeds, found)

  def render(self, figures: list[pictures.Picture], files: list[str]) -> str:
    """The whole page.

    Args:
      figures: in their order; their files lie in figures/.
      files: names of the tables, which lie in tables/.
    """
    parts = [
      *self._head(),
      *self._answers(),
      *self._contrasts(),
      *ladder_words.section(
        self._about, self._found['ladders'], self._found['rungs']
      ),
      *self._variants(),
      *self._figures(figures),
      *self._failures(),
      *self._settings(),
      *self._method(files),
    ]
    return '\n\n'.join(part for part in parts if part) + '\n'

  def _head(self):
    about, runs = self._about, self._plan.runs
    question = ' '.join(about['question'].split())
    yield f'# {about["name"]}: {question}'
    if about['exploratory']:
      yield (
        '> **Exploratory.** This plan tests nothing: it has no verdicts, '
        'and its differences only suggest what to test.'
      )
    if not self._plan.is_whole:
      yield (
        f'> **Not finished**: {tables.counted(runs)}{self._progress()}. '
        'All numbers will change; those of an arm of which no run has ended '
        'are those so far.'
      )
    yield (
      f'{text.plural(len(runs), "run")} ({tables.counted(runs)}): '
      f'{text.plural(len(about["variants"]), "variant")}, '
      f'{text.plural(len(about["seeds"]), "seed")}, '
      f'{text.listing(self._places())}, {about["horizon"]} steps each'
      f'{self._episodes()}. {self._origin()}'
    )

  def _places(self):
    """Tasks, and ladders with the number of their rungs."""
    for name, tasks in kinds.places(self._about).items():
      is_ladder = name in self._about['ladders']
      yield f'{name} on {len(tasks)} rungs' if is_ladder else name

  def _progress(self):
    runs = self._plan.runs
    ends = runs.loc[runs['state'] == records.UNFINISHED, 'end']
    if ends.empty:
      return ''
    return (
      f'; the unfinished are at step '
      f'{text.bounds(ends.min(), ends.max(), ".0f")} of '
      f'{self._about["horizon"]}'
    )

  def _episodes(self):
    steps = self._plan.steps
    if 'total/episodes' not in steps:
      return ''
    each = (steps['total/episodes'] / steps['step']).round()
    return f' of {text.bounds(each.min(), each.max(), ",.0f")} episodes'

  def _origin(self):
    about = self._about
    versions = about.get('versions', {})
    told = ', '.join(f'{name} {version}' for name, version in versions.items())
    return (
      f'Commit {about.get("commit", "unknown")}, device '
      f'{about.get("device", "unknown")}{", " if told else ""}{told}.'
    )

  def _answers(self):
    words = self._words
    yield '## What the runs say'
    yield (
      f'Ranges in brackets are {1 - self._about["alpha"]:.0%} intervals, '
      'n is the number of seeds.'
    )
    for title, lines in (
      ('1. Stability', words.stability()),
      ('2. Reward, advantages and clipping', words.reward()),
      ('3. Learning dynamics', words.learning()),
      ('4. Arithmetic and harmonic means', words.means()),
      ('What the data cannot tell', words.limits()),
    ):
      yield f'### {title}'
      yield '\n'.join(f'- {line[0].upper()}{line[1:]}' for line in lines)

  def _contrasts(self):
    table, about = self._found['contrasts'], self._about
    if table.empty:
      return
    yield '## Contrasts'
    yield text.table(
      [
        'contrast',
        'outcome',
        'difference',
        f'{1 - about["alpha"]:.0%} interval',
        'seeds',
        'p',
        'p, Holm',
        'verdict',
        'smallest shown',
      ],
      [self._contrast(row) for row in table.itertuples()],
    )
    yield from self._pairing(table)

  def _contrast(self, row):
    form = kinds.KINDS[row.outcome].form
    return (
      row.name,
      row.outcome,
      text.signed(row.mean, form),
      text.bounds(row.low, row.high, form, text.signed)
      if row.n
      else text.NOTHING,
      f'{row.n} of {row.planned}',
      text.p_value(row.p),
      text.p_value(row.adjusted),
      row.verdict,
      text.number(row.smallest, form),
    )

  def _pairing(self, table):
    first = pairing.first_rollouts(self._plan)
    if len(first):
      equal = int(first['equal'].sum())
      yield (
        'Do all arms sample the same first rollout? '
        f'{"Yes" if equal == len(first) else "**No**"}: on {equal} of '
        f'{len(first)} pairs of a task and a seed.'
      )
    else:
      yield (
        "Do all arms sample the same first rollout? The folder doesn't tell."
      )
    rows = table[table['outcome'].isin(['area', 'exact_area'])]
    if len(rows):
      yield text.table(
        [
          'pairing',
          'tokens part at step (median)',
          'correlation of areas',
          'seeds saved by pairing, factor',
        ],
        [
          (
            row.name,
            'never'
            if np.isinf(row.diverge)
            else text.number(row.diverge, '.0f'),
            text.number(row.correlation, '.2f'),
            text.number(row.gain, '.1f'),
          )
          for row in rows.itertuples()
        ],
      )

  def _variants(self) -> Iterator[str]:
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
    rows = self._found['variants']
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
      found = [cells.get((*name, m.column)) for m in shown]
      spread = cells.get((*name, _SPREAD))
      body.append(
        [*self._named(name, runs), *map(_cell, shown, found)]
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
    table = self._found['targets']
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
    table = self._found['risk']
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

  def _figures(self, figures):
    if figures:
      yield '## Figures'
    for picture in figures:
      yield (
        f'### {picture.title}\n\n![{picture.title}]'
        f'(figures/{picture.name}.png)\n\n{picture.caption}'
      )

  def _failures(self):
    runs = self._plan.runs
    runs = runs[runs['state'].isin([records.FAILED, records.DAMAGED])]
    if len(runs):
      yield '## Failed runs'
      yield text.table(
        ['task', 'variant', 'seed', 'state', 'step', 'reason'],
        [
          (run.task, run.variant, run.seed, run.state, run.end, run.reason)
          for run in runs.itertuples()
        ],
      )

  def _settings(self):
    about = self._about
    yield '## Settings'
    yield text.table(
      ['variant', 'what differs', 'settings of', 'exploratory', 'note'],
      [
        (
          name,
          _overrides(variant.get('overrides', {})),
          variant.get('settings', 'base'),
          'yes' if variant.get('exploratory') or about['exploratory'] else 'no',
          variant.get('note', ''),
        )
        for name, variant in about['variants'].items()
      ],
    )
    told = list(settings.lines(self._plan))
    if told:
      yield 'Of all runs, whether or not the plan varies it:\n\n' + '\n'.join(
        told
      )
      yield (
        'The clip range is 1 - eps_low to 1 + eps_high. QK-clip acts above '
        'tau; logits above monitor_tau are only counted.'
      )
    chosen = [
      (task, variant, _overrides(values))
      for task, variants in about.get('settings', {}).items()
      for variant, values in variants.items()
      if values
    ]
    if chosen:
      yield text.table(['task', 'variant', 'chosen by tuning'], chosen)
    if self._plan.tuning is not None and len(self._plan.tuning):
      yield from grids.section(about, self._plan.tuning)

  def _method(self, files):
    about = self._about
    yield '## How it was computed'
    yield '\n'.join(
      [
        f'- Area: mean height of the held-out greedy reward from step 0 to '
        f'{about["horizon"]}, straight lines between evaluations.',
        '- Contrasts pair runs of equal seed, on one task or one ladder; a '
        "ladder's area is the mean over its rungs. Areas and rungs: sign-flip "
        "test and the interval that it keeps (Student's t below 6 seeds). "
        "Collapses: exact McNemar test, Tango's interval.",
        f"- Verdicts: different if Holm's p, for "
        f'{contrasts.family_size(about)} contrasts{self._family()}, is at most '
        f'{about["alpha"]:g}; equivalent if the {1 - 2 * about["alpha"]:.0%} '
        f'interval, which is not adjusted for their number, lies within '
        f'{self._margins()}; else undecided. None in an exploratory plan, of '
        'an exploratory variant, or before all seeds have ended.',
        '- Smallest shown: the difference in area that these seeds find four '
        "times in five at Holm's first step; of collapses, the least that the "
        'exact test can find there.',
        '- Thirds are of training; values of a run are means over the steps '
        'that measured them, logits its largest.',
        "- Means over seeds: Student's t interval, cut at the bounds of "
        'shares and cosines and at 0 where nothing is negative; shares of '
        "runs: Clopper and Pearson's.",
      ]
    )
    yield 'Tables: ' + ', '.join(f'[{f}](tables/{f})' for f in files) + '.'

  def _family(self):
    own = len(self._about['contrasts'])
    return ' of several plans' if self._about['family'] > own else ''

  def _margins(self):
    """Of equivalence, of the outcomes that are compared."""
    compared = dict.fromkeys(self._found['contrasts']['outcome']) or ['area']
    return text.listing(
      f'±{self._about["margins"][name]:g} ({name.replace("_", " ")})'
      for name in compared
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


def _overrides(values):
  return ', '.join(f'{key} = {value}' for key, value in values.items()) or (
    text.NOTHING
  )
