"""Figures that compare variants: contrasts, survival, the tuned grid."""

from matplotlib import figure
from matplotlib import patches
import numpy as np
import pandas

from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import curves
from hmpo_jax.analysis import kinds
from hmpo_jax.analysis import proportions
from hmpo_jax.analysis import records
from hmpo_jax.analysis import statistics
from hmpo_jax.analysis import styles
from hmpo_jax.analysis import survival
from hmpo_jax.analysis import text


def forest(plan: records.Plan, table: pandas.DataFrame) -> figure.Figure | None:
  """Every contrast with its interval; filled where it may get a verdict.

  Args:
    plan: what `records.read` returns.
    table: what `contrasts.make` returns.

  Returns:
    None where no contrast has two pairs of runs.
  """
  known = table[np.isfinite(table['low']) & np.isfinite(table['high'])]
  groups = [known[known['outcome'] == outcome] for outcome in kinds.KINDS]
  groups = [group for group in groups if len(group)]
  if not groups:
    return None
  height = 0.8 + sum(0.32 * len(group) + 0.55 for group in groups)
  picture = figure.Figure(figsize=(styles.WIDTH, height), layout='constrained')
  grid = picture.subplots(
    len(groups), 1, squeeze=False, height_ratios=[len(g) + 1 for g in groups]
  )
  for axes, group in zip(grid.flat, groups):
    _forest_panel(axes, group, plan.about['margins'])
  return picture


def ladder(
  plan: records.Plan, seeds: pandas.DataFrame, name: str
) -> figure.Figure | None:
  """Held-out area and share collapsed against the learning rate.

  Args:
    plan: what `records.read` returns.
    seeds: what `outcomes.per_seed` returns.
    name: of the ladder.

  Returns:
    None where no run on it has ended.
  """
  rates = plan.about['ladders'][name]
  ended = seeds[records.has_ended(seeds) & seeds['task'].isin(list(rates))]
  if ended.empty:
    return None
  look = styles.of_variants(list(plan.about['variants']))
  picture, grid = styles.panels(2, height=2.9, sharing=False)
  for variant in plan.about['variants']:
    arm = ended[ended['variant'] == variant]
    arms = [arm[arm['task'] == task] for task in rates]
    shares = [
      proportions.proportion_interval(
        int(runs['collapsed'].sum()), len(runs), plan.about['alpha']
      )
      for runs in arms
    ]
    areas = [
      statistics.mean_interval(
        runs['area'].to_numpy(float), plan.about['alpha']
      )
      for runs in arms
    ]
    for axes, intervals in zip(grid, (areas, shares)):
      _ladder_curve(
        axes, list(rates.values()), intervals, look[variant], variant
      )
  for axes, label in zip(
    grid, ('area under held-out reward', 'share of seeds collapsed')
  ):
    axes.set_xscale('log', base=2)
    axes.set_xticks(
      list(rates.values()),
      [f'{rate:.2g}' for rate in rates.values()],
      rotation=45,
    )
    axes.minorticks_off()
    axes.set_ylabel(label)
  grid[1].set_ylim(-0.03, 1.03)
  curves.finish(picture, grid, 'learning rate', '')
  return picture


def target(
  plan: records.Plan, seeds: pandas.DataFrame, task: str
) -> figure.Figure | None:
  """Share of the runs that haven't reached the target, over the steps.

  Args:
    plan: what `records.read` returns.
    seeds: what `outcomes.per_seed` returns.
    task: whose runs are drawn.

  Returns:
    None where no run has ended.
  """
  ended = seeds[
    records.has_ended(seeds)
    & (seeds['task'] == task)
    & seeds['steps_to_target'].notna()
  ]
  if ended.empty:
    return None
  look = styles.of_variants(list(plan.about['variants']))
  picture, parts = curves.layout(plan, curves.present(plan, ended, task))
  for axes, group, ghost in parts:
    if ghost:
      axes.plot(
        *_survival(plan, ended, ghost),
        '--',
        drawstyle='steps-post',
        color=styles.GRAY,
      )
    for variant in group:
      axes.plot(
        *_survival(plan, ended, variant),
        look[variant].line,
        drawstyle='steps-post',
        color=look[variant].color,
        linewidth=1.8,
        label=variant,
      )
  first = parts[0][0]
  first.set_ylim(-3, 103)
  first.set_xlim(0, plan.about['horizon'])
  curves.finish(
    picture,
    [axes for axes, *_ in parts],
    'step',
    f'runs below {plan.about["target"]:g} so far, %',
  )
  return picture


def tuning(table: pandas.DataFrame) -> figure.Figure:
  """The tuned grid: mean area of each learning rate and clip width.

  Args:
    table: columns task, variant, learning_rate, eps, seed, area, chosen.
  """
  arms = list(table.groupby(['task', 'variant'], sort=False))
  picture, grid = styles.panels(len(arms), height=2.1, sharing=False)
  low, high = table['area'].min(), table['area'].max()
  for axes, ((task, variant), rows) in zip(grid, arms):
    _heat(axes, rows, low, max(high, low + 1e-9))
    axes.set_title(f'{variant}, {task}')
  picture.supxlabel('clip width eps', fontsize=9)
  picture.supylabel('learning rate', fontsize=9)
  return picture


def _ladder_curve(axes, rates, intervals, style, label):
  """Means over the rungs that have runs, with the band of their intervals."""
  known = [(x, shown) for x, shown in zip(rates, intervals) if shown.n]
  if not known:
    return
  places, shown = zip(*known)
  axes.plot(
    places,
    [each.mean for each in shown],
    style.line,
    marker='o',
    markersize=3.5,
    color=style.color,
    linewidth=1.8,
    label=label,
  )
  axes.fill_between(
    places,
    [each.low for each in shown],
    [each.high for each in shown],
    color=style.color,
    alpha=0.15,
    linewidth=0,
  )


def _forest_panel(axes, group, margins):
  """One line for each contrast, the first at the top."""
  outcome = group['outcome'].iloc[0]
  margin = margins[outcome]
  places = np.arange(len(group))[::-1]
  axes.axvspan(-margin, margin, color='#DDDDDD', linewidth=0)
  axes.axvline(0, color='black', linewidth=0.8)
  for place, row in zip(places, group.itertuples()):
    is_open = row.verdict == contrasts.EXPLORATORY
    axes.plot([row.low, row.high], [place, place], color='black', linewidth=1.2)
    axes.plot(
      row.mean,
      place,
      'o',
      markersize=6,
      color='black',
      markerfacecolor='white' if is_open else '#0072B2',
    )
    axes.annotate(
      f'{row.verdict}, n = {row.n}',
      (1.01, place),
      xycoords=('axes fraction', 'data'),
      va='center',
      fontsize=8,
    )
  axes.set_yticks(places, group['name'])
  axes.set_ylim(-0.6, len(group) - 0.4)
  axes.set_xlabel(f'difference in {kinds.KINDS[outcome].what}')


def _survival(plan, ended, variant):
  runs = ended[ended['variant'] == variant]
  times, share = survival.kaplan_meier(
    runs['steps_to_target'].to_numpy(float), (runs['reached'] == 1).to_numpy()
  )
  times, share = np.asarray(times, float), np.asarray(share, float)
  return np.append(times, plan.about['horizon']), 100 * np.append(
    share, share[-1]
  )


def _heat(axes, rows, low, high):
  """Cells with their numbers; a frame around the one that was chosen."""
  area = rows.pivot_table(
    index='learning_rate', columns='eps', values='area', aggfunc='mean'
  )
  axes.imshow(
    area, origin='lower', aspect='auto', cmap='cividis', vmin=low, vmax=high
  )
  for (i, j), value in np.ndenumerate(area.to_numpy()):
    dark = (value - low) / (high - low) < 0.6
    axes.text(
      j,
      i,
      text.number(value, '.3f'),
      ha='center',
      va='center',
      color='white' if dark else 'black',
      fontsize=8,
    )
  for row in rows[rows['chosen'].astype(bool)].itertuples():
    place = (
      area.columns.get_loc(row.eps) - 0.5,
      area.index.get_loc(row.learning_rate) - 0.5,
    )
    axes.add_patch(
      patches.Rectangle(
        place, 1, 1, fill=False, edgecolor='#D55E00', linewidth=3
      )
    )
  axes.set_xticks(range(len(area.columns)), [f'{x:g}' for x in area.columns])
  axes.set_yticks(range(len(area.index)), [f'{x:g}' for x in area.index])
