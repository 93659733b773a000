"""What a plan's seeds come to on its ladders."""

from collections.abc import Mapping

import numpy as np
import pandas

from hmpo_jax.analysis import kinds
from hmpo_jax.analysis import ladder
from hmpo_jax.analysis import records
from hmpo_jax.analysis import statistics

_COLUMNS = (
  'ladder',
  'variant',
  'n',
  'area',
  'area_low',
  'area_high',
  'rung',
  'rung_low',
  'rung_high',
  'below',
  'above',
  'half',
  'half_low',
  'half_high',
)


def by_seed(
  about: dict, runs: pandas.DataFrame, place: str, outcome: str
) -> pandas.Series:
  """The outcome of each seed on a task or a ladder, by seed.

  Args:
    about: what plan.json holds.
    runs: rows of `outcomes.per_seed` of one variant that have ended, on the
      tasks of the place; a seed that hasn't on each of them is left out.
    place: task or ladder; of a ladder an area is the mean over its rungs.
    outcome: of kinds.KINDS.
  """
  if outcome == 'rung':
    found = {
      seed: critical.rung
      for seed, critical in _critical(about['ladders'][place], runs).items()
    }
    return pandas.Series(found, dtype=float)
  grouped = runs.groupby('seed')[kinds.KINDS[outcome].column]
  count = len(about['ladders'].get(place, [place]))
  return grouped.mean()[grouped.count() == count]


def range_of(about: dict, place: str) -> tuple[float, float]:
  """Least and greatest critical rung that a seed can have."""
  rates = list(about['ladders'][place].values())
  return (
    ladder.critical_rung(rates, [True] * len(rates)).rung,
    ladder.critical_rung(rates, [False] * len(rates)).rung,
  )


def per_seed(plan: records.Plan, seeds: pandas.DataFrame) -> pandas.DataFrame:
  """One row a ladder, variant and seed that has ended on all its rungs.

  Args:
    plan: what `records.read` returns.
    seeds: what `outcomes.per_seed` returns.

  Returns:
    Columns ladder, variant, seed, area (mean over the rungs), rung (log2 of the
    largest learning rate below the first collapse), is_low and is_high (whether
    the ladder ends before it can tell, see `ladder.Critical`).
  """
  rows = []
  for name, variant, runs in _arms(plan, seeds):
    areas = by_seed(plan.about, runs, name, 'area')
    for seed, critical in _critical(plan.about['ladders'][name], runs).items():
      rows.append((name, variant, seed, areas[seed], *critical))
  return pandas.DataFrame(
    rows,
    columns=['ladder', 'variant', 'seed', 'area', *ladder.Critical._fields],
  )


def per_variant(
  plan: records.Plan, seeds: pandas.DataFrame
) -> pandas.DataFrame:
  """One row a ladder and variant, with intervals at the plan's alpha.

  Args:
    plan: what `records.read` returns.
    seeds: what `outcomes.per_seed` returns.

  Returns:
    Columns ladder, variant, n, then means over seeds with _low and _high: area
    (mean over the rungs), rung (critical); below and above, the seeds whose
    rung lies at or below, and at or above, what the ladder can tell; half with
    _low and _high, the learning rate at which half of the seeds collapse.
  """
  alpha, rows = plan.about['alpha'], []
  table = per_seed(plan, seeds)
  for name, variant, runs in _arms(plan, seeds):
    arm = table[(table['ladder'] == name) & (table['variant'] == variant)]
    rates = plan.about['ladders'][name]
    half = ladder.half_collapse(
      list(rates.values()), _collapsed(rates, runs).to_numpy(bool), alpha
    )
    means = (
      statistics.mean_interval(arm[key].to_numpy(float), alpha)[:3]
      for key in ('area', 'rung')
    )
    rows.append(
      (
        name,
        variant,
        len(arm),
        *next(means),
        *next(means),
        int(arm['is_low'].sum()),
        int(arm['is_high'].sum()),
        *half[:3],
      )
    )
  return pandas.DataFrame(rows, columns=_COLUMNS)


def _arms(plan, seeds):
  """(ladder, variant, its runs that have ended) where a seed has on all."""
  ended = seeds[records.has_ended(seeds)]
  for name, rates in plan.about['ladders'].items():
    here = ended[ended['task'].isin(list(rates))]
    for variant in plan.about['variants']:
      runs = here[here['variant'] == variant]
      if len(_collapsed(rates, runs)):
        yield name, variant, runs


def _critical(rates: Mapping[str, float], runs):
  """Critical rung by seed."""
  table = _collapsed(rates, runs)
  return {
    seed: ladder.critical_rung(list(rates.values()), row)
    for seed, row in zip(table.index, table.to_numpy(bool))
  }


def _collapsed(rates, runs):
  """[n, R] whether a seed collapsed on a rung, of the seeds that know all."""
  table = runs.pivot_table(index='seed', columns='task', values='collapsed')
  table = table.reindex(columns=list(rates)).dropna()
  return table.astype(np.float64) > 0
