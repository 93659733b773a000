"""Answers to the plan's questions, in sentences made from the numbers."""

from collections.abc import Iterator
import math

import numpy as np

from hmpo_jax.analysis import changes
from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import findings as findings_lib
from hmpo_jax.analysis import kinds
from hmpo_jax.analysis import ladder_words
from hmpo_jax.analysis import measures
from hmpo_jax.analysis import records
from hmpo_jax.analysis import settings
from hmpo_jax.analysis import text
from hmpo_jax.training import update

_NAMED = 4  # variants that sentences name where no contrast does


class Words:
  """Sentences about the tables of one plan."""

  def __init__(self, findings: findings_lib.Findings):
    """Takes what the report has computed."""
    self._plan, self._seeds, self._tables = findings
    self._about = self._plan.about
    named = {
      c[arm]: None
      for c in self._about['contrasts']
      for arm in ('variant', 'baseline')
    }
    self._named = list(named) or list(self._about['variants'])[:_NAMED]
    self._tasks = kinds.told_tasks(self._about)

  def stability(self) -> Iterator[str]:
    """How often logits explode and numbers stop being finite."""
    yield from self._contrast_sentences('collapse', 'rung')
    yield from ladder_words.sentences(self._about, self._tables['ladders'])
    for task in self._tasks:
      logits = self._row('qk/max_logit:max', '.1f', task)
      if logits:
        yield (
          f'{self._on(task)}the largest attention logit of a run was {logits}.'
        )
      clipped = self._row('qk/clipped_frac:mean', '.1%', task)
      if clipped:
        yield (
          f'{self._on(task)}the share of updates that QK-clip '
          f'changed{self._set(task, "tau")} was {clipped}.'
        )
      yield from self._exploded(task)
    yield self._skips()

  def reward(self) -> Iterator[str]:
    """Reward, advantages and clipped ratios."""
    yield from self._contrast_sentences('area', 'exact_area')
    for task in self._tasks:
      yield from self._changes(task)
      for column, form, what in (
        (
          'advantage/effective_variance:mean',
          '.3f',
          'the variance of the effective advantage A M_p was',
        ),
        ('ratio/mean:mean', '.4f', 'the mean ratio was'),
      ):
        row = self._row(column, form, task)
        if row:
          yield f'{self._on(task)}{what} {row}.'
      sides = self._sides(task)
      if sides:
        yield (
          f'{self._on(task)}of the rows were clipped in the last third of '
          f'training, low and high'
          f'{self._set(task, "eps_low", "eps_high")}: {sides}.'
        )

  def learning(self) -> Iterator[str]:
    """Steps, episodes and tokens to the target."""
    targets, about = self._tables['targets'], self._about
    for task in self._tasks:
      rows = targets[(targets['task'] == task) & (targets['unit'] == 'steps')]
      parts = [self._target(row) for row in self._of_named(rows)]
      if parts:
        yield (
          f'{self._on(task)}steps to a held-out reward of '
          f'{about["target"]:g}, restricted mean to {about["horizon"]} '
          f'steps: {"; ".join(parts)}.'
        )
    if targets.empty:
      yield 'No run has ended, so no time to the target is known.'

  def means(self) -> Iterator[str]:
    """Arithmetic and harmonic means, and the order in use."""
    for task in self._tasks:
      for column, form, what in (
        ('agm/gap:mean', '.4f', 'the gap A - H was'),
        (
          'agm/convergence_rate:mean',
          '.4f',
          'the convergence rate of the A-H iteration was',
        ),
        (
          'mechanism/cosine_unclipped:mean',
          '.3f',
          'gradients for p = 0 and p = -1 on the same batch, without a clip, '
          'had the cosine',
        ),
      ):
        row = self._row(column, form, task)
        if row:
          yield f'{self._on(task)}{what} {row}.'
      yield from self._clipped_cosine(task)
      yield from self._gap_and_variance(task)
      yield from self._orders(task)

  def _on(self, task):
    return f'On {task}, ' if len(self._about['tasks']) > 1 else ''

  def _of_named(self, rows):
    """Rows of the named variants, in their order."""
    by_name = {row.variant: row for row in rows.itertuples()}
    return [by_name[name] for name in self._named if name in by_name]

  def _row(self, column, form, task):
    """Mean of each named variant with its interval and seeds."""
    rows = self._tables['variants']
    rows = rows[(rows['task'] == task) & (rows['column'] == column)]
    return '; '.join(
      f'{row.variant} {text.number(row.mean, form)} '
      f'({_interval(row, form)}, n = {row.n})'
      for row in self._of_named(rows)
    )

  def _changes(self, task):
    """Start and end of what is evaluated, and which way it went."""
    rows = self._tables['variants']
    lines = [
      *changes.sentences(rows[rows['task'] == task], self._named),
      *changes.so_far(self._plan, task),
    ]
    yield from (f'{self._on(task)}{line}' for line in lines)

  def _clipped_cosine(self, task):
    """With the clip some batches leave a loss without a gradient."""
    key = 'mechanism/cosine'
    rows = self._tables['variants']
    rows = rows[(rows['task'] == task) & (rows['column'] == f'{key}:mean')]
    parts = []
    for row in self._of_named(rows):
      known, due = self._defined(task, row.variant, key)
      count = '' if known == due else f', defined in {known} of {due} batches'
      parts.append(
        f'{row.variant} {text.number(row.mean, ".3f")} '
        f'({_interval(row, ".3f")}, n = {row.n}{count})'
      )
    if parts:
      yield f'{self._on(task)}with the clip it was {"; ".join(parts)}.'

  def _defined(self, task, variant, key):
    steps = self._plan.steps
    arm = (steps['task'] == task) & (steps['variant'] == variant)
    return measures.defined(steps[arm], key)

  def _set(self, task, *names):
    """Settings of the runs of a task in brackets, where they are known."""
    named = [settings.phrase(self._runs(task), name) for name in names]
    known = [words for words in named if words]
    return f' ({", ".join(known)})' if known else ''

  def _runs(self, task):
    return self._plan.runs[self._plan.runs['task'] == task]

  def _sides(self, task):
    rows = self._tables['variants']
    rows = rows[rows['task'] == task]
    low, high = (
      {
        row.variant: row
        for row in rows[
          rows['column'] == f'clip/{side}_frac:third_3'
        ].itertuples()
      }
      for side in ('low', 'high')
    )
    parts = []
    for name in self._named:
      if name in low and name in high:
        sides = ' and '.join(
          f'{text.number(row.mean, ".1%")} ({_interval(row, ".1%")})'
          for row in (low[name], high[name])
        )
        parts.append(f'{name} {sides}, n = {low[name].n}')
    return '; '.join(parts)

  def _contrast_sentences(self, *outcomes):
    rows = self._tables['contrasts']
    for row in rows[rows['outcome'].isin(outcomes)].itertuples():
      if row.Index < len(self._about['contrasts']):
        yield contrast_sentence(row)

  def _exploded(self, task):
    risk = self._tables['risk']
    if risk.empty:
      return
    rows = self._of_named(risk[risk['task'] == task])
    parts = [
      f'{row.variant} {row.exploded:.0f} of {row.n} '
      f'({text.bounds(row.exploded_low, row.exploded_high, ".0%")})'
      for row in rows
      if not math.isnan(row.exploded)
    ]
    level = settings.phrase(self._runs(task), 'monitor_tau') or 'monitor_tau'
    if parts:
      yield (
        f'{self._on(task)}runs with ten updates in a row above '
        f'{level}: {"; ".join(parts)}.'
      )

  def _skips(self):
    columns = {c: f'skipped/{c}:sum' for c in update.NUMERICAL_CAUSES}
    counts = {c: int(self._seeds[k].sum()) for c, k in columns.items()}
    causes = text.listing(
      [f'{count} for {cause}' for cause, count in counts.items() if count]
      or ['none']
    )
    runs = (self._plan.runs['end'] > 0).sum()
    return (
      f'Updates skipped for a numerical error in the {runs} runs that '
      f'began: {causes}.'
    )

  def _target(self, row):
    return (
      f'{row.variant} {text.number(row.mean, ".0f")} '
      f'({text.bounds(row.low, row.high, ".0f")}), reached by '
      f'{row.reached} of {row.n}'
    )

  def _gap_and_variance(self, task):
    rows = self._seeds[self._seeds['task'] == task]
    ratio = rows['agm/log_gap:mean'] / rows['log_ratio/row_variance:mean']
    ratio = ratio[np.isfinite(ratio)]
    if len(ratio):
      span = text.bounds(ratio.min(), ratio.max(), '.2f')
      yield (
        f'{self._on(task)}log A - log H was {span} times the variance of '
        f'the log-ratios ({text.plural(len(ratio), "run")}); it is 1 '
        'where these are small and symmetric.'
      )

  def _orders(self, task):
    rows = records.shown(self._seeds)
    rows = rows[rows['task'] == task]
    for variant, runs in rows.groupby('variant', sort=False):
      first, last = runs['mean/p:first'], runs['mean/p:last']
      if (first - last).abs().max() > 1e-6:
        yield (
          f'{self._on(task)}the order p of {variant} went from '
          f'{text.number(first.mean(), ".2f")} to '
          f'{text.number(last.mean(), ".2f")} (seeds '
          f'{text.bounds(last.min(), last.max(), ".2f")}, '
          f'n = {last.count()}).'
        )


def contrast_sentence(row) -> str:
  """One contrast: difference, interval, seeds, p and verdict."""
  kind = kinds.KINDS[row.outcome]
  if not row.n:
    return f'Contrast {row.name}, {kind.what}: no seed has ended in both arms.'
  verdict = f'**{row.verdict}**'
  if row.verdict != contrasts.EXPLORATORY and not math.isnan(row.adjusted):
    verdict += f' (p {_equals(row.p)}, {text.p_value(row.adjusted)} after Holm)'
  return (
    f'Contrast {row.name}, {kind.what}: '
    f'{text.signed(row.mean, kind.form)} '
    f'({text.bounds(row.low, row.high, kind.form, text.signed)}, '
    f'n = {row.n}): {verdict}.'
  )


def _interval(row, form):
  if row.low == row.high:
    return 'in every run'
  return text.bounds(row.low, row.high, form)


def _equals(p):
  shown = text.p_value(p)
  return shown if shown.startswith('below') else f'= {shown}'
