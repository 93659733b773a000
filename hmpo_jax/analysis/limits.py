"""What the data of a plan cannot tell, in sentences."""

from collections.abc import Iterator
import math

import numpy as np

from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import findings as findings_lib
from hmpo_jax.analysis import kinds
from hmpo_jax.analysis import power
from hmpo_jax.analysis import records
from hmpo_jax.analysis import text


def sentences(findings: findings_lib.Findings) -> Iterator[str]:
  """What the data cannot tell."""
  about = findings.plan.about
  if about['exploratory']:
    yield (
      'This plan is exploratory: its numbers suggest what to test, and '
      'no difference here is a finding.'
    )
  yield from _unfinished(findings)
  yield from _failures(findings)
  yield from _identical(findings)
  yield from _seeds_needed(findings)
  yield from _power(findings)
  marked = [n for n, v in about['variants'].items() if v.get('exploratory')]
  if marked and not about['exploratory']:
    yield (
      f'Exploratory by the plan, without a verdict: {text.listing(marked)}.'
    )
  if len(about['tasks']) < 4 or about['ladders']:
    count = len(kinds.places(about))
    yield (
      f'{text.plural(count, "task")} of one small policy: '
      'nothing here speaks of other tasks or of larger models.'
    )


def _identical(findings):
  """Contrasts of runs that are the same to the last token."""
  rows = findings.tables['contrasts']
  same = np.isinf(rows['diverge'].astype(float)) & (rows['mean'] == 0)
  for row in rows[same & (rows['outcome'] == 'area')].itertuples():
    yield (
      f'Arms {row.variant} and {row.baseline} sampled the same tokens '
      'in every step: what they differ in changed no token, and their '
      'contrast says nothing.'
    )


def _unfinished(findings):
  runs = findings.plan.runs
  for state, what in (
    (records.UNFINISHED, ('has not ended', 'have not ended')),
    (records.MISSING, ('has not begun', 'have not begun')),
    (
      records.DAMAGED,
      ('is damaged and left out', 'are damaged and left out'),
    ),
  ):
    count = int((runs['state'] == state).sum())
    if count:
      arms = runs.loc[runs['state'] == state, 'variant'].unique()
      yield (
        f'{count} of {text.plural(len(runs), "run")} '
        f'{what[count > 1]} ({text.listing(arms)}).'
      )
  if not records.has_ended(runs).all():
    yield 'Contrasts get no verdict before all their seeds have ended.'


def _failures(findings):
  runs = findings.plan.runs
  failed = runs[runs['state'] == records.FAILED]
  if len(failed):
    yield (
      f'{text.plural(len(failed), "run")} failed and '
      f'{"counts" if len(failed) == 1 else "count"}: held-out reward '
      f'{findings.plan.about["failure_reward"]:g} from the failure on, '
      'collapsed, target never reached. What else is reported of them '
      'ends at the failure.'
    )


def _seeds_needed(findings):
  seeds, alpha = len(findings.plan.about['seeds']), findings.plan.about['alpha']
  family = max(contrasts.family_size(findings.plan.about), 1)
  if seeds == 1:
    yield 'One seed: no interval, and no difference can be told from chance.'
  elif not power.can_answer(seeds, family, alpha):
    share = f', {alpha:g} over {family} contrasts' if family > 1 else ''
    yield (
      f'{seeds} seeds: however large a difference is, the exact test '
      f"can't go below p = {power.least_p(seeds):g}, and a verdict "
      f'takes {alpha / family:g} or less{share}.'
    )


def _power(findings):
  """Contrasts that don't say different or equivalent."""
  rows = findings.tables['contrasts']
  for row in rows[rows['verdict'] == 'undecided'].itertuples():
    seeds, kind = text.plural(row.n, 'seed'), kinds.KINDS[row.outcome]
    contrast = f'Contrast {row.name} in {row.outcome.replace("_", " ")} is '
    if kind.is_event:
      least = (
        'finds nothing'
        if math.isnan(row.smallest)
        else f'needs a difference of {format(row.smallest, kind.form)}'
      )
      yield (
        f"{contrast}undecided: at Holm's first step the exact test of "
        f'{seeds} {least}.'
      )
    else:
      least = (
        'can show none'
        if math.isnan(row.smallest)
        else f'find one of {format(row.smallest, kind.form)} four times in five'
      )
      yield (
        f'{contrast}undecided: if there is a difference, {seeds} {least}; '
        f'the margin is {findings.plan.about["margins"][row.outcome]:g}.'
      )
