"""report.md: the answers first, then what they stand on."""

import numpy as np

from hmpo_jax.analysis import arms
from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import findings as findings_lib
from hmpo_jax.analysis import grids
from hmpo_jax.analysis import kinds
from hmpo_jax.analysis import ladder_words
from hmpo_jax.analysis import limits
from hmpo_jax.analysis import pairing
from hmpo_jax.analysis import pictures
from hmpo_jax.analysis import records
from hmpo_jax.analysis import sentences
from hmpo_jax.analysis import settings
from hmpo_jax.analysis import tables
from hmpo_jax.analysis import text


class Page:
  """The Markdown of a plan; equal folders give equal bytes."""

  def __init__(self, findings: findings_lib.Findings):
    """Takes what the report has computed."""
    self._findings = findings
    self._plan, _, self._tables = findings
    self._about = self._plan.about
    self._words = sentences.Words(findings)

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
        self._about, self._tables['ladders'], self._tables['rungs']
      ),
      *arms.ArmTables(self._findings).section(),
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
    named = ', '.join(f'{name} {version}' for name, version in versions.items())
    return (
      f'Commit {about.get("commit", "unknown")}, device '
      f'{about.get("device", "unknown")}{", " if named else ""}{named}.'
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
      ('What the data cannot tell', limits.sentences(self._findings)),
    ):
      yield f'### {title}'
      yield '\n'.join(f'- {line[0].upper()}{line[1:]}' for line in lines)

  def _contrasts(self):
    table, about = self._tables['contrasts'], self._about
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
    lines = list(settings.lines(self._plan))
    if lines:
      yield 'Of all runs, whether or not the plan varies it:\n\n' + '\n'.join(
        lines
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
    compared = dict.fromkeys(self._tables['contrasts']['outcome']) or ['area']
    return text.listing(
      f'±{self._about["margins"][name]:g} ({name.replace("_", " ")})'
      for name in compared
    )


def _overrides(values):
  return ', '.join(f'{key} = {value}' for key, value in values.items()) or (
    text.NOTHING
  )
