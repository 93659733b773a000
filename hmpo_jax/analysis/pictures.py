"""All figures of a report, with what stands below them."""

from collections.abc import Iterator
from typing import NamedTuple

from matplotlib import figure
import pandas

from hmpo_jax.analysis import charts
from hmpo_jax.analysis import contrasts
from hmpo_jax.analysis import curves
from hmpo_jax.analysis import kinds
from hmpo_jax.analysis import measures
from hmpo_jax.analysis import phase
from hmpo_jax.analysis import records
from hmpo_jax.analysis import styles
from hmpo_jax.analysis import tables
from hmpo_jax.analysis import text

_BAND = 'thin lines are seeds, the thick one is their mean, the band {}'
_GRAY = '; dashed gray: {} for comparison'
_WIDE = 5  # from the least value to the largest, for a scale of logarithms
_ROLLING = 15  # horizons over the window of a rolling mean


class Picture(NamedTuple):
  """A figure, the name of its files and its words."""

  name: str
  title: str
  caption: str
  figure: figure.Figure


def make(
  plan: records.Plan, seeds: pandas.DataFrame, table: pandas.DataFrame
) -> Iterator[Picture]:
  """Figures for which the folder holds what they show.

  Args:
    plan: what `records.read` returns.
    seeds: what `outcomes.per_seed` returns.
    table: what `contrasts.make` returns.
  """
  picture = charts.forest(plan, table)
  if picture:
    yield Picture(
      'contrasts',
      'Contrasts',
      f'Mean difference of paired seeds with its {_percent(plan)} interval; '
      'gray: the margin of equivalence; open circles are exploratory.',
      picture,
    )
  for name in plan.about['ladders']:
    picture = charts.ladder(plan, seeds, name)
    if picture:
      yield Picture(
        f'ladder-{text.slug(name)}',
        f'Against the learning rate, {name}',
        f'Mean held-out area with its {_percent(plan)} interval, and the '
        'share of the seeds that collapsed with its exact one, rung by rung.',
        picture,
      )
  for task in kinds.told_tasks(plan.about):
    yield from _of_task(plan, seeds, task)
  if plan.phase is not None:
    yield from _phases(plan.phase.to_dict('records'))
  if plan.tuning is not None and len(plan.tuning):
    yield Picture(
      'tuning',
      'The tuned grid',
      'Mean area under the held-out reward over the tuning seeds; a frame '
      'marks what was chosen.',
      charts.tuning(plan.tuning),
    )


def window(plan: records.Plan) -> int:
  """Steps of the rolling means."""
  return max(1, round(plan.about['horizon'] / _ROLLING))


def _phases(rows):
  """The phase diagram of each reward of the tiny task."""
  for reward in dict.fromkeys(row['reward'] for row in rows):
    yield Picture(
      f'phase-{text.slug(reward)}',
      f'Which order estimates the gradient best, reward {reward}',
      'On a tiny task whose exact gradient is known: mean squared error of '
      'the estimate over that of the best order, by sigma of the log-ratios '
      'and length.',
      phase.draw(rows, reward),
    )


def _of_task(plan, seeds, task):
  """The figures that each task has."""
  for name, title, caption, picture in (
    *_learning(plan, seeds, task),
    *_training(plan, task),
  ):
    if picture is not None:
      yield Picture(
        f'{name}-{text.slug(task)}', f'{title}, {task}', caption + '.', picture
      )


def _learning(plan, seeds, task):
  interval = _interval(plan)
  failures = plan.runs['state'] == records.FAILED
  score = (
    (
      f'; failed runs count as {plan.about["failure_reward"]:g} from the '
      'failure on'
    )
    if failures.any()
    else ''
  )
  frame = plan.heldout
  if (frame['task'] == task).any():
    for column, title, label in (
      ('reward', 'Held-out reward', 'held-out reward, greedy'),
      ('exact', 'Held-out exact match', 'share of answers that are right'),
    ):
      name = {'reward': 'learning', 'exact': 'exact'}[column]
      curve = curves.Curve(column, label)
      yield (
        name,
        title,
        _upper(interval) + score + _ghost(plan, task, frame),
        curves.of_variants(plan, frame, task, curve),
      )
  yield (
    'target',
    'Runs below the target',
    f'Share of the runs whose held-out reward has not yet been at '
    f'{plan.about["target"]:g} in two successive evaluations (Kaplan and '
    'Meier); failed runs never are',
    charts.target(plan, seeds, task),
  )


def _training(plan, task):
  """Figures of the records of training."""
  here = plan.steps[plan.steps['task'] == task]
  has = lambda key: key in here and here[key].notna().any()
  ghost = _ghost(plan, task, plan.steps)
  interval = _upper(_interval(plan)) + ghost
  if has('reward/mean'):
    smooth = tables.smoothed(plan, 'reward/mean', window(plan))
    curve = curves.Curve(
      'reward/mean', 'episode reward, rolling mean', spread='deviation'
    )
    deviation = _BAND.format('the standard deviation across seeds')
    yield (
      'reward',
      'Episode reward',
      f'Rolling mean over {window(plan)} steps; {deviation}{ghost}',
      curves.of_variants(plan, smooth, task, curve),
    )
  if has('qk/max_logit'):
    yield (
      'logits',
      'Largest attention logit',
      f'{interval}; lines across: tau of the QK-clip (dashed) and the '
      'threshold that is only counted (dotted), where they are in view',
      _logits(plan, task),
    )
  if has('clip/low_frac'):
    yield (
      'clipping',
      'Clipped rows',
      interval.split(';', maxsplit=1)[0]
      + '; rows stopped at the low side (A < 0) and at the high side (A > 0)',
      _clipping(plan, task),
    )
  if has('ratio/mean'):
    yield (
      'ratios',
      'Ratios of rows',
      "Mean of the rows' ratios M_p and its "
      'standard deviation over the rows; ' + _interval(plan),
      _ratios(plan, task),
    )
    yield (
      'extremes',
      'Largest and smallest ratio',
      'Of the ratios M_p of all rows of a step; ' + _interval(plan),
      _extremes(plan, task),
    )
  if has('agm/log_gap'):
    yield (
      'gap',
      'Arithmetic-harmonic gap and variance',
      "log A - log H of the tokens' ratios in a row, and the variance of "
      'their logarithms, which is its leading term',
      _gap(plan, task),
    )
  if has('mean/p'):
    curve = curves.Curve('mean/p', 'order p of the mean')
    yield (
      'order',
      'Order of the mean',
      interval,
      curves.of_variants(plan, plan.steps, task, curve),
    )
  if has('mechanism/cosine_unclipped'):
    yield (
      'cosine',
      'Do the means differ?',
      'Cosine of the gradients for two orders on one batch, without a '
      'clip; 1: the choice makes no difference' + _gaps(here),
      _cosine(plan, task),
    )


def _logits(plan, task):
  curve = curves.Curve('qk/max_logit', 'largest attention logit', reduce='max')
  picture = curves.of_variants(plan, plan.steps, task, curve)
  _use_logarithms(plan, task, picture, ('qk/max_logit',))
  runs = plan.runs[plan.runs['task'] == task]
  highest = plan.steps.loc[plan.steps['task'] == task, 'qk/max_logit'].max()
  for axes in picture.get_axes():
    for column, line in (('tau', '--'), ('monitor_tau', ':')):
      for level in sorted(set(runs[column].dropna())):
        if level < _WIDE * highest:
          axes.axhline(level, color='black', linewidth=0.9, linestyle=line)
  return picture


def _use_logarithms(plan, task, picture, keys):
  keys = [key for key in keys if key in plan.steps]
  values = plan.steps.loc[plan.steps['task'] == task, keys]
  low, high = values.min().min(), values.max().max()
  if high > _WIDE * low > 0:
    styles.use_logarithms(picture)


def _clipping(plan, task):
  return curves.of_keys(
    plan,
    task,
    'share of the rows',
    (
      curves.Curve('clip/low_frac', 'below the range', line='-'),
      curves.Curve('clip/high_frac', 'above the range', line='--'),
    ),
  )


def _ratios(plan, task):
  steps = plan.steps
  bounds = steps.assign(
    above=steps['ratio/mean'] + steps['ratio/std'],
    below=(steps['ratio/mean'] - steps['ratio/std']).clip(lower=0),
  )
  around = lambda key: curves.Curve(
    key, 'mean ± deviation over rows', spread='none', line='--', seeds=False
  )
  return curves.of_keys(
    plan._replace(steps=bounds),
    task,
    'ratio M_p of a row',
    (curves.Curve('ratio/mean', 'mean'), around('above'), around('below')),
  )


def _extremes(plan, task):
  picture = curves.of_keys(
    plan,
    task,
    'ratio M_p of a row',
    (
      curves.Curve('ratio/max', 'largest', reduce='max'),
      curves.Curve('ratio/min', 'smallest', reduce='min', line='--'),
    ),
  )
  _use_logarithms(plan, task, picture, ('ratio/min', 'ratio/max'))
  return picture


def _gap(plan, task):
  picture = curves.of_keys(
    plan,
    task,
    'nats and nats²',
    (
      curves.Curve('agm/log_gap', 'log A - log H, nats'),
      curves.Curve('log_ratio/row_variance', 'var(x), nats²', line='--'),
    ),
  )
  _use_logarithms(
    plan, task, picture, ('agm/log_gap', 'log_ratio/row_variance')
  )
  return picture


def _cosine(plan, task):
  curve = lambda key, label, line: curves.Curve(key, label, line=line)
  return curves.of_keys(
    plan,
    task,
    'cosine of the gradients',
    (
      curve('mechanism/cosine_unclipped', 'p = 0 and -1', '-'),
      curve('mechanism/cosine_unclipped_p1_p0', 'p = 1 and 0', '--'),
      curve('mechanism/cosine_unclipped_p1_pm1', 'p = 1 and -1', ':'),
    ),
  )


def _gaps(steps):
  """How many comparisons have a cosine, where not all do."""
  known, due = measures.defined(steps, 'mechanism/cosine_unclipped')
  if known == due:
    return ''
  return (
    f'; {known} of {due} batches have one, in the others a gradient is 0 '
    'or no number'
  )


def _ghost(plan, task, frame):
  variants = curves.present(plan, frame, task)
  against = contrasts.reference(plan.about)
  if len(variants) > curves.TOGETHER and against in variants:
    return _GRAY.format(against)
  return ''


def _interval(plan):
  return _BAND.format(
    f'its {_percent(plan)} interval (from {curves.FEW} seeds on)'
  )


def _percent(plan):
  return f'{1 - plan.about["alpha"]:.0%}'


def _upper(sentence):
  return sentence[0].upper() + sentence[1:]
