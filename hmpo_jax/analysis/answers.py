"""The answers of the committed plans, as parts of Markdown pages.

A *block* is the report of one plan under results/, with its plan.json and
tables; nothing here needs its runs.
"""

from collections.abc import Callable
from collections.abc import Mapping
import pathlib
from typing import NamedTuple

import numpy as np
import pandas

from hmpo_jax import config as config_lib
from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import kinds
from hmpo_jax.analysis import ladder_words
from hmpo_jax.analysis import records
from hmpo_jax.analysis import rungs
from hmpo_jax.analysis import statistics
from hmpo_jax.analysis import text

_TEXTS = {'task': str, 'variant': str, 'reason': str}


class Block(NamedTuple):
  """What is left of one plan."""

  plan: records.Plan  # without steps
  seeds: pandas.DataFrame  # as of outcomes.per_seed
  contrasts: pandas.DataFrame  # as of contrasts.make
  # What experiments/drawdowns.py wrote beside its tables, if it has.
  drawdowns: pandas.DataFrame | None


def read(root: str | pathlib.Path) -> dict[str, Block]:
  """The blocks under a folder by the names of their folders.

  Args:
    root: results/; what holds no plan.json is no block.

  Raises:
    ConfigError: no such folder, or a block without the tables of its report.
  """
  if not pathlib.Path(root).is_dir():
    raise config_lib.ConfigError(f'--results={root}: no such folder')
  blocks = {}
  for file in sorted(pathlib.Path(root).glob('*/plan.json')):
    plan = records.of_report(file.parent)
    seeds = pandas.read_csv(
      file.parent / 'tables' / 'seeds.csv',
      keep_default_na=False,
      na_values=[''],
      dtype=_TEXTS,
    )
    try:
      table = contrasts.make(plan, seeds)
    except KeyError as error:
      raise config_lib.ConfigError(
        f'{file.parent}: tables/seeds.csv does not fit plan.json ({error}): '
        'write the report again'
      ) from error
    drawdowns = file.parent / 'tables' / 'drawdowns.csv'
    blocks[file.parent.name] = Block(
      plan,
      seeds,
      table,
      pandas.read_csv(drawdowns, keep_default_na=False, na_values=[''])
      if drawdowns.exists()
      else None,
    )
  return blocks


def confirmatory(blocks: Mapping[str, Block]) -> str:
  """Every confirmatory contrast, with Holm's correction over all blocks.

  Raises:
    ConfigError: blocks that don't name one family, as large as they are many.
  """
  rows = [
    (name, block.plan.about, row)
    for name, block in blocks.items()
    for row in block.contrasts.itertuples()
    if row.Index < len(block.plan.about['contrasts'])
    and row.verdict != contrasts.EXPLORATORY
  ]
  if not rows:
    return 'No confirmatory plan is in yet.'
  families = {contrasts.family_size(about) for _, about, _ in rows}
  family = max(families)
  if len(families) > 1 or family < len(rows):
    raise config_lib.ConfigError(
      f'answers: {len(rows)} confirmatory contrasts are of plans whose '
      f'family is {sorted(families)}: must be one number, no smaller'
    )
  adjusted = statistics.holm(
    [row.p if row.n == row.planned else np.nan for *_, row in rows], family
  )
  cells = []
  for (name, about, row), p in zip(rows, adjusted):
    kind = kinds.KINDS[row.outcome]
    verdict = row.verdict
    if p <= about['alpha'] and (row.low > 0 or row.high < 0):
      if verdict.startswith('undecided'):
        verdict = contrasts.DIFFERENT
      elif verdict.startswith('equivalent'):
        verdict = contrasts.DIFFERENT_WITHIN
    cells.append(
      (
        name,
        row.name,
        kind.what,
        text.signed(row.mean, kind.form),
        text.bounds(row.low, row.high, kind.form, text.signed),
        f'{row.n} of {row.planned}',
        text.p_value(row.p),
        text.p_value(p),
        verdict,
      )
    )
  return text.table(
    [
      'plan',
      'contrast',
      'outcome',
      'difference',
      '95% interval',
      'seeds',
      'p',
      f'p, Holm over {family}',
      'verdict',
    ],
    cells,
  )


def margins(blocks: Mapping[str, Block]) -> str:
  """How large a step each arm bears: the ladders."""
  parts = []
  for name, block in blocks.items():
    if not block.plan.about['ladders']:
      continue
    parts += list(
      ladder_words.section(
        block.plan.about,
        rungs.per_variant(block.plan, block.seeds),
        rungs.per_seed(block.plan, block.seeds),
      )
    )[1:]
    rows = [
      row
      for row in block.contrasts.itertuples()
      if row.outcome in ('area', 'rung') and not row.minus
    ]
    parts.append(f'Differences, {name}:')
    parts.append(_differences(rows))
  return '\n\n'.join(parts) or 'No ladder is in yet.'


def split(blocks: Mapping[str, Block]) -> str:
  """HMPO - GSPO at GSPO's settings: token weights, clip mask, both."""
  if 'calm' not in blocks:
    return 'The calm plan is not in yet.'
  block, rows = blocks['calm'], []
  for task in block.plan.about['tasks']:
    for outcome in ('area', 'exact_area'):
      arms = {
        name: rungs.by_seed(
          block.plan.about,
          block.seeds[
            (block.seeds['variant'] == name)
            & (block.seeds['task'] == task)
            & records.has_ended(block.seeds)
          ],
          task,
          outcome,
        )
        for name in ('gspo', 'hmpo', 'weights_only', 'mask_only')
      }
      together = arms['hmpo'] - arms['gspo']
      weights = arms['weights_only'] - arms['gspo']
      mask = arms['mask_only'] - arms['gspo']
      for label, values in (
        ('HMPO - GSPO', together),
        ('token weights alone', weights),
        ('clip mask alone', mask),
        ('the two together beyond their sum', together - weights - mask),
      ):
        rows.append(
          (
            task,
            kinds.KINDS[outcome].what,
            label,
            *_interval(values.dropna().to_numpy(float), '.4f'),
          )
        )
  return text.table(
    ['what is paid', 'outcome', 'difference', 'mean', '95% interval', 'seeds'],
    rows,
  )


def against(name: str) -> Callable[[Mapping[str, Block]], str]:
  """The part that shows every arm of a block against its reference."""

  def part(blocks):
    if name not in blocks:
      return f'The plan {name} is not in yet.'
    rows = list(blocks[name].contrasts.itertuples())
    return _differences(rows)

  return part


def doses(blocks: Mapping[str, Block]) -> str:
  """Every dose of the logits: reward, logits and collapses, arm by arm."""
  if 'logits' not in blocks:
    return 'The logits plan is not in yet.'
  seeds, rows = blocks['logits'].seeds, []
  ended = seeds[records.has_ended(seeds)]
  for (task, variant), runs in ended.groupby(['task', 'variant'], sort=False):
    area = statistics.mean_interval(runs['area'].to_numpy(float))
    row = [
      task,
      variant,
      text.mean_and_interval(area.mean, area.low, area.high, '.3f'),
    ]
    for column, form in (
      ('qk/max_logit:max', '.1f'),
      ('qk/clipped_frac:mean', '.1%'),
      ('qk/entropy:mean', '.3f'),
    ):
      known = runs[column].mean() if column in runs else np.nan
      row.append(text.number(known, form))
    skipped = runs.filter(regex='^skipped/.*:sum$').sum(axis=1)
    row += [
      f'{int(runs["collapsed"].sum())} of {len(runs)}',
      f'{int((skipped > 0).sum())} of {len(runs)}',
    ]
    rows.append(row)
  return text.table(
    [
      'dose',
      'arm',
      'area under held-out reward',
      'largest logit, mean',
      'updates clipped',
      'attention entropy, nats',
      'collapsed',
      'runs with skipped updates',
    ],
    rows,
  )


def foretold(blocks: Mapping[str, Block]) -> str:
  """What the A-H gap says of a drawdown that its parts don't say."""
  rows = []
  for name, block in blocks.items():
    if block.drawdowns is None:
      continue
    for row in block.drawdowns.fillna(
      {'base': '', 'predictor': ''}
    ).itertuples():
      interval = text.bounds(row.low, row.high, '.3f', text.signed)
      rows.append(
        (
          name,
          row.base,
          row.predictor,
          text.number(row.auc, '.3f'),
          text.signed(row.increment, '.3f'),
          text.NOTHING if np.isnan(row.low) else interval,
          text.number(row.warned, '.0%'),
          text.number(row.false_alarms, '.0%'),
        )
      )
  if not rows:
    return 'No table of drawdowns is in yet.'
  return text.table(
    [
      'plan',
      'known beside it',
      'predictor',
      'AUC',
      'increment',
      '95% interval',
      'drawdowns with an alarm before',
      'runs with a false alarm',
    ],
    rows,
  )


PARTS: dict[str, Callable[[Mapping[str, Block]], str]] = {
  'confirmatory': confirmatory,
  'margins': margins,
  'split': split,
  'calm': against('calm'),
  'moving': against('moving'),
  'own': against('own'),
  'doses': doses,
  'drawdowns': foretold,
}


def _interval(values, form):
  interval = statistics.paired_interval(values)
  return (
    text.signed(interval.mean, form),
    text.bounds(interval.low, interval.high, form, text.signed),
    len(values),
  )


def _differences(rows):
  cells = []
  for row in rows:
    form = kinds.KINDS[row.outcome].form
    cells.append(
      (
        row.name,
        kinds.KINDS[row.outcome].what,
        text.signed(row.mean, form),
        text.bounds(row.low, row.high, form, text.signed),
        int(row.n),
        row.verdict,
      )
    )
  return text.table(
    ['contrast', 'outcome', 'difference', '95% interval', 'seeds', 'verdict'],
    cells,
  )
