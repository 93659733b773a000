"""What each run of a plan came to: one row a run, every seed by itself."""

import numpy as np
import pandas

from hmpo_jax.analysis import heights
from hmpo_jax.analysis import ladder
from hmpo_jax.analysis import measures
from hmpo_jax.analysis import records
from hmpo_jax.analysis import survival

UNITS = ('steps', 'episodes', 'tokens')  # in which time to target is told
# Kept by a failed run too: what of its steps is no outcome.
_UNKNOWN = np.nan


def per_seed(plan: records.Plan) -> pandas.DataFrame:
  """One row a run.

  Args:
    plan: what `records.read` returns.

  Returns:
    The columns of `plan.runs`, then heldout_first, heldout_last, exact_first,
    exact_last, heldout_change and exact_change (end - step 0), area and
    exact_area (mean height of the held-out reward and of the held-out exact
    match from step 0 to the horizon), collapsed (0 or 1), drawdown (largest
    fall of the held-out reward), reached (0 or 1), steps_, episodes_ and
    tokens_to_target (the horizon where it isn't reached), tokens (of the whole
    run), then the columns of measures.MEASURES. NaN where a run that hasn't
    ended can't tell, and where a metric isn't recorded.
  """
  steps = dict(list(plan.steps.groupby(records.RUN)))
  heldout = dict(list(plan.heldout.groupby(records.RUN)))
  rows = []
  for run in plan.runs.to_dict('records'):
    name = tuple(run[key] for key in records.RUN)
    recorded = steps.get(name, plan.steps.iloc[:0])
    rows.append(
      run
      | _heldout(plan.about, run, heldout.get(name), recorded)
      | _recorded(run, recorded, plan.about['horizon'])
    )
  return _censored(pandas.DataFrame(rows))


def _heldout(about, run, evaluations, recorded):
  """Outcomes of the held-out curve of one run."""
  names = (
    'heldout_first',
    'heldout_last',
    'exact_first',
    'exact_last',
    'area',
    'exact_area',
    'collapsed',
    'drawdown',
    'reached',
    'steps_to_target',
    'heldout_change',
    'exact_change',
    'episodes_to_target',
    'tokens_to_target',
    'tokens',
  )
  row = dict.fromkeys(names, _UNKNOWN)
  if evaluations is None:
    return row
  steps, reward, errors, exact = (
    evaluations[key].to_numpy(float)
    for key in ('step', 'reward', 'stderr', 'exact')
  )
  if steps[0] == 0 and evaluations['measured'].iloc[0]:
    row |= {'heldout_first': reward[0], 'exact_first': exact[0]}
  if len(recorded):
    row['tokens'] = float(recorded['total/tokens'].iloc[-1])
  if run['state'] in (records.FINISHED, records.FAILED):
    failed = run['state'] == records.FAILED
    end = run['end'] if failed else about['horizon']
    area = lambda values, failure_value: heights.scored_area(
      steps, values, about['horizon'], end, failure_value
    )
    fall = ladder.collapse(reward, errors, about['collapse_margin'])
    row |= {
      'heldout_last': reward[-1],
      'exact_last': exact[-1],
      'heldout_change': reward[-1] - row['heldout_first'],
      'exact_change': exact[-1] - row['exact_first'],
      'area': area(reward, about['failure_reward']),
      'exact_area': area(exact, 0.0),
      'collapsed': float(failed or fall >= 0),
      'drawdown': heights.max_drawdown(reward),
    } | _target(about, failed, steps, reward, recorded)
  return row


def _target(about, failed, steps, reward, recorded):
  """When the target was reached; a failed run never reaches it."""
  time, reached = survival.time_to_target(steps, reward, about['target'])
  if failed or not reached:
    return {'reached': 0.0, 'steps_to_target': float(about['horizon'])}
  row = recorded[recorded['step'] == time]
  total = lambda key: float(row[f'total/{key}'].iloc[0]) if len(row) else 0.0
  return {
    'reached': 1.0,
    'steps_to_target': float(time),
    'episodes_to_target': total('episodes'),
    'tokens_to_target': total('tokens'),
  }


def _censored(table):
  """Episodes and tokens of runs that didn't reach the target.

  Runs take different numbers of tokens. The horizon of a task is the least
  number that a finished run took, so that all are followed as far.
  """
  finished = table[table['state'] == records.FINISHED]
  for unit, total in (
    ('episodes', 'total/episodes:last'),
    ('tokens', 'tokens'),
  ):
    column = f'{unit}_to_target'
    if total not in table:
      continue
    horizon = table['task'].map(finished.groupby('task')[total].min())
    table[f'{unit}_horizon'] = horizon
    late = (table['reached'] == 0) | (table[column] > horizon)
    table[column] = table[column].mask(late, horizon)
  return table


def _recorded(run, steps, horizon):
  """The measures of the records of one run, so far if it hasn't ended."""
  has_ended = run['state'] in (records.FINISHED, records.FAILED)
  row = {'total/episodes:last': _UNKNOWN}
  if 'total/episodes' in steps and len(steps):
    row['total/episodes:last'] = float(steps['total/episodes'].iloc[-1])
  for measure in measures.MEASURES:
    if not measure.reduce:
      continue
    values = steps.get(measure.key)
    known = values.notna().to_numpy() if values is not None else np.zeros(0)
    row[measure.column] = _UNKNOWN
    if measure.reduce in measures.OF_THE_END and not has_ended:
      continue
    if known.any():
      row[measure.column] = measures.REDUCTIONS[measure.reduce](
        steps['step'].to_numpy(float)[known],
        values.to_numpy(float)[known],
        horizon,
      )
  return row
