"""Figures of what happens over the steps of training."""

from collections.abc import Iterator
from typing import NamedTuple

from matplotlib import figure
import numpy as np
import pandas

from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import measures
from hmpo_jax.analysis import records
from hmpo_jax.analysis import statistics
from hmpo_jax.analysis import styles

TOGETHER = 4  # variants that one panel holds; with more, each has its own
BLOCKS = 60  # points that a curve of every step is drawn with
FEW = 5  # runs below which an interval is so wide that it hides them
_STEPS = 'step (one rollout with all its updates)'


class Curve(NamedTuple):
  """A metric over the steps, and how it is drawn."""

  key: str  # column of the frame
  label: str  # of the axis, with its unit; in a legend its name
  reduce: str = 'mean'  # of the steps that one point stands for
  spread: str = 'interval'  # of the mean | deviation of the runs | none
  line: str = '-'
  seeds: bool = True  # whether each is drawn


def of_variants(
  plan: records.Plan, frame: pandas.DataFrame, task: str, curve: Curve
) -> figure.Figure:
  """One metric of every variant: seeds thin, mean thick, band around it.

  The mean and its band are over the runs that have come as far, where these are
  at least half; an interval needs five. Beyond four variants each has a panel,
  with the reference dashed in gray.

  Args:
    plan: what `records.read` returns.
    frame: columns task, variant, seed, step and curve.key.
    task: whose runs are drawn.
    curve: what is drawn; its label stands at the axis.
  """
  look = styles.of_variants(list(plan.about['variants']))
  rows = _shown(plan, frame, task, (curve,))
  picture, parts = layout(plan, present(plan, rows, task))
  for axes, group, ghost in parts:
    if ghost:
      steps, values = _values(rows, ghost, curve)
      axes.plot(steps, _mean(values), '--', color=styles.GRAY, linewidth=1)
    for variant in group:
      style = look[variant]
      if len(group) == 1:
        style = style._replace(line='-')
      _draw(axes, plan, rows, variant, curve, style, variant)
  finish(picture, [axes for axes, *_ in parts], _STEPS, curve.label)
  parts[0][0].set_xlim(0, plan.about['horizon'])
  return picture


def of_keys(
  plan: records.Plan, task: str, label: str, curves: tuple[Curve, ...]
) -> figure.Figure:
  """Several metrics of the records with one unit, a panel for each variant.

  Args:
    plan: what `records.read` returns.
    task: whose runs are drawn.
    label: of the axis, with its unit.
    curves: what is drawn; their labels stand in the legend.
  """
  curves = tuple(curve for curve in curves if curve.key in plan.steps)
  rows = _shown(plan, plan.steps, task, curves)
  variants = present(plan, rows, task)
  picture, grid = styles.panels(len(variants))
  look = styles.of_variants(list(dict.fromkeys(c.label for c in curves)))
  for axes, variant in zip(grid, variants):
    for curve in curves:
      style = styles.Style(look[curve.label].color, curve.line)
      _draw(axes, plan, rows, variant, curve, style, curve.label)
    axes.set_title(variant)
  finish(picture, grid, _STEPS, label)
  grid[0].set_xlim(0, plan.about['horizon'])
  return picture


def layout(
  plan: records.Plan, variants: list[str]
) -> tuple[figure.Figure, list[tuple]]:
  """One panel for few variants, or one for each.

  Returns:
    The figure, and for each panel its axes, the variants it shows and the one
    that it shows in gray, or None.
  """
  if len(variants) <= TOGETHER:
    picture, (axes,) = styles.panels(1)
    return picture, [(axes, variants, None)]
  against = contrasts.reference(plan.about)
  picture, grid = styles.panels(len(variants))
  for axes, variant in zip(grid, variants):
    axes.set_title(variant)
  ghost = against if against in variants else None
  return picture, [
    (axes, [variant], None if variant == against else ghost)
    for axes, variant in zip(grid, variants)
  ]


def finish(picture: figure.Figure, grid: list, across: str, up: str) -> None:
  """Labels of the axes, and one legend where panels hold several curves."""
  picture.supxlabel(across, fontsize=9)
  picture.supylabel(up, fontsize=9)
  handles, labels = grid[0].get_legend_handles_labels()
  named = dict(zip(labels, handles))
  if len(named) > 1 or named and not grid[0].get_title():
    picture.legend(
      list(named.values()),
      list(named),
      loc='outside upper center',
      ncols=min(len(named), 4),
    )


def present(
  plan: records.Plan, frame: pandas.DataFrame, task: str
) -> list[str]:
  """Variants of a task that a frame holds runs of, in the plan's order."""
  variants = set(frame.loc[frame['task'] == task, 'variant'])
  return [name for name in plan.about['variants'] if name in variants]


def _draw(axes, plan, rows, variant, curve, style, name):
  """Thin seeds, their mean, and the band around it."""
  steps, values = _values(rows, variant, curve)
  if curve.seeds:
    for run in values:
      axes.plot(
        *_known(steps, run), color=style.color, linewidth=0.5, alpha=0.4
      )
  axes.plot(
    *_known(steps, _mean(values)),
    style.line,
    color=style.color,
    linewidth=1.8,
    label=name,
  )
  if curve.spread != 'none' and len(values) > 1:
    low, high = _band(values, curve, plan.about['alpha'])
    limits = axes.dataLim.frozen()
    axes.fill_between(
      steps, low, high, color=style.color, alpha=0.18, linewidth=0
    )
    axes.dataLim.set(limits)  # runs decide them, or few seeds hide all else


def _columns(values) -> Iterator[np.ndarray]:
  """What is known at each step, nothing where fewer than half of runs are."""
  for column in values.T:
    known = column[~np.isnan(column)]
    yield known if 2 * len(known) >= len(column) else known[:0]


def _mean(values):
  """[m] mean of [n, m] curves."""
  return np.array([c.mean() if len(c) else np.nan for c in _columns(values)])


def _known(steps, values):
  """Points where there is a value: a line would hide one between gaps."""
  known = ~np.isnan(values)
  return steps[known], values[known]


def _band(values, curve, alpha):
  """[2, m] bounds around the mean of [n, m] curves; NaN of too few runs."""
  limits = measures.bounds(curve.key)
  if values.size and not np.isnan(values).all():
    # A failed run may count as less than a measured one can be.
    limits = (
      min(limits[0], np.nanmin(values)),
      max(limits[1], np.nanmax(values)),
    )
  bounds = np.full((2, values.shape[1]), np.nan)
  for i, column in enumerate(_columns(values)):
    if len(column) >= FEW and curve.spread == 'interval':
      bounds[:, i] = statistics.mean_interval(column, alpha, limits)[1:3]
    elif len(column) > 1 and curve.spread == 'deviation':
      deviation = column.std(ddof=1)
      bounds[:, i] = column.mean() - deviation, column.mean() + deviation
  return np.clip(bounds, *limits)


def _shown(plan, frame, task, curves):
  """What the curves need of the runs of a task that are shown.

  A curve of every step gets the last step of its block for each of them.
  """
  runs = records.shown(plan.runs)
  keys = records.RUN + ['step', *(curve.key for curve in curves)]
  rows = runs.loc[runs['task'] == task, records.RUN].merge(
    frame[keys].dropna(subset=keys[len(records.RUN) + 1 :], how='all'),
    on=records.RUN,
  )
  horizon = plan.about['horizon']
  width = max(1, round(horizon / BLOCKS))
  if not (rows['step'] == 0).any():  # not evaluations, which are few
    ends = np.ceil(rows['step'].to_numpy(float) / width) * width
    rows['step'] = np.minimum(ends, horizon)
  return rows


def _values(rows, variant, curve):
  """Steps [m] and curves [n, m] of a variant; NaN beyond the end of a run."""
  grid = rows[rows['variant'] == variant].pivot_table(
    index='seed', columns='step', values=curve.key, aggfunc=curve.reduce
  )
  return grid.columns.to_numpy(float), grid.to_numpy(float)
