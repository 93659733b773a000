"""What a run came to: its summary, and the closing table that shows it."""

import functools
import itertools
import math
import pathlib

import numpy as np

from hmpo_jax.run import files
from hmpo_jax.training import update

_EVALUATIONS = ('first_eval', 'eval')
_UNKNOWN = 'not measured'
_BASELINES = {
  'majority': 'commonest tokens',
  'modal': 'commonest answer',
  'random': 'random tokens',
}


def make(records, extra, baselines, config):
  """What a run came to; no wall-clock times.

  Args:
    records: of all its steps, as `records.read_measured` gives them.
    extra: held-out metrics of the first and the last evaluation, the settings
      that a controller has left, and why it ended the run, if it did.
    baselines: rewards that need no skill.
    config: of the run.

  Returns:
    Numbers and texts by name, as they stand in summary.json; None for a number
    that no step of the run measured.
  """
  first, last = (_evaluated(extra[key], config) for key in _EVALUATIONS)
  over = functools.partial(_over, records)
  return {
    'steps': len(records),
    'updates': len(records)
    * config.train.num_epochs
    * config.train.num_minibatches,
    'early_stop': extra['early_stop'],
    **_controlled(records, extra['settings']),
    'episodes': records[-1]['total/episodes'],
    'tokens': records[-1]['total/tokens'],
    'heldout_reward_first': first['eval/reward'],
    'heldout_reward_first_stderr': first['eval/reward_stderr'],
    'heldout_reward_last': last['eval/reward'],
    'heldout_reward_last_stderr': last['eval/reward_stderr'],
    'heldout_exact_first': first['eval/exact'],
    'heldout_exact_last': last['eval/exact'],
    'heldout_nan_rewards': int(last['eval/nan_rewards']),
    'gap_closed': _gap_closed(first['eval/reward'], last['eval/reward']),
    **baselines,
    'reward_last_10': _over(records[-10:], np.mean, 'reward/mean'),
    'ratio_mean': over(np.mean, 'ratio/mean'),
    'clip_low_frac': over(np.mean, 'clip/low_frac'),
    'clip_high_frac': over(np.mean, 'clip/high_frac'),
    'sigma': over(np.mean, 'log_ratio/last_update_sigma'),
    **_compared(records),
    'max_logit': over(np.max, 'qk/max_logit'),
    'updates_over_monitor_tau_frac': over(np.mean, 'qk/over_monitor_tau_frac'),
    'exploded': bool(over(np.max, 'qk/exploded')),
    'updates_qk_clipped_frac': over(np.mean, 'qk/clipped_frac'),
    'heads_ever_clipped_frac': over(np.max, 'qk/heads_ever_clipped_frac'),
    'smallest_factor': over(np.min, 'qk/factor_min'),
    'skipped': {
      cause: sum(int(record[f'skipped/{cause}']) for record in records)
      for cause in update.SKIP_CAUSES
    },
  }


def num_sound(summary) -> int:
  """Updates of a run that had no numerical cause to be skipped."""
  faults = sum(summary['skipped'][cause] for cause in update.NUMERICAL_CAUSES)
  return summary['updates'] - faults


def read(file: pathlib.Path, num_steps: int) -> dict | None:
  """The summary of a finished run.

  Args:
    file: which it stands in.
    num_steps: of the run, if no controller ends it.

  Returns:
    None if there is none that is whole, or one of a run that was shorter.
  """
  summary = files.read_json(file)
  if summary is None:
    return None
  try:
    rows(summary, file.parent)
    is_over = summary['steps'] >= num_steps or bool(summary.get('early_stop'))
  except (ValueError, KeyError, TypeError, AttributeError):
    return None
  return summary if is_over else None


def _over(records, reduce, name) -> float | None:
  """A number from the steps that measured it; None if none did."""
  values = [record[name] for record in records]
  known = [value for value in values if not math.isnan(value)]
  return float(reduce(known)) if known else None


def _evaluated(evaluation, config):
  """An evaluation, without a reward if none of its rewards is a number."""
  if evaluation['eval/nan_rewards'] < config.eval.num_prompts:
    return evaluation
  unknown = ('eval/reward', 'eval/reward_stderr', 'eval/exact')
  return evaluation | dict.fromkeys(unknown)


def _gap_closed(first, last):
  """Share of what was missing to a reward of 1; None if nothing was."""
  if first is None or last is None or first >= 1:
    return None
  return (last - first) / (1 - first)


def _controlled(records, left):
  """First and last value and number of changes of what a controller moved.

  Args:
    records: of all steps.
    left: settings after the last one, by name.
  """
  names = [name for name in left if f'control/{name}' in records[-1]]
  if not names:
    return {}
  moved = {}
  for name in names:
    held = [record[f'control/{name}'] for record in records] + [left[name]]
    changes = sum(old != new for old, new in itertools.pairwise(held))
    if changes:
      moved[name] = {'first': held[0], 'last': held[-1], 'changes': changes}
  return {'controlled': moved}


def _compared(records):
  """Means over the steps at which gradients were compared, if at any.

  A cosine counts where both gradients have a direction.
  """
  measured = [r for r in records if r.get('mechanism/step') == r['step']]
  if not measured:
    return {}
  values: dict = {'cosines': len(measured)}
  for name in ('cosine', 'cosine_unclipped'):
    key = f'mechanism/{name}'
    values[name] = _over(measured, np.mean, key)
    values[f'{name}_defined'] = sum(not math.isnan(r[key]) for r in measured)
  return values


def rows(summary, workdir):
  """The closing table of a summary: label and value."""
  skipped = (
    ', '.join(
      f'{count} {cause}' for cause, count in summary['skipped'].items() if count
    )
    or 'none'
  )
  show = lambda name, form: _shown(summary[name], form)
  pair = lambda name: _span(
    *(show(f'{name}_{end}', '.3f') for end in ('first', 'last'))
  )
  nan_rewards = summary.get('heldout_nan_rewards')
  return [
    ('steps, updates', f'{summary["steps"]}, {summary["updates"]}'),
    *(
      [('ended by the controller', summary['early_stop'])]
      if summary.get('early_stop')
      else []
    ),
    *(
      [('changed by the controller', _moved(summary['controlled']))]
      if 'controlled' in summary
      else []
    ),
    ('episodes, tokens', f'{summary["episodes"]}, {summary["tokens"]}'),
    ('held-out reward', pair('heldout_reward')),
    ('its standard error', show('heldout_reward_last_stderr', '.3f')),
    *(
      [('held-out rewards that are NaN', f'{nan_rewards}, which count as 0')]
      if nan_rewards
      else []
    ),
    ('share of the gap to 1 closed', show('gap_closed', '.0%')),
    ('held-out exact match', pair('heldout_exact')),
    *(
      (
        f'{name} (reward, exact)',
        f'{summary[f"{key}_reward"]:.3f}, {summary[f"{key}_exact"]:.3f}',
      )
      for key, name in _BASELINES.items()
      if f'{key}_reward' in summary
    ),
    ('mean ratio', show('ratio_mean', '.4f')),
    (
      'clipped low, high',
      f'{show("clip_low_frac", ".1%")}, {show("clip_high_frac", ".1%")}',
    ),
    ('sigma of the log-ratios, last update', show('sigma', '.3f')),
    *(
      [('cosine of gradients p = 0, -1 (unclipped)', _cosines(summary))]
      if 'cosine' in summary
      else []
    ),
    ('largest attention logit', show('max_logit', '.1f')),
    (
      'updates with one above monitor_tau',
      f'{show("updates_over_monitor_tau_frac", ".1%")}'
      f'{", exploded" if summary["exploded"] else ""}',
    ),
    ('updates that QK-clip changed', show('updates_qk_clipped_frac', '.1%')),
    ('updates skipped', skipped),
    ('folder', str(workdir)),
  ]


def _moved(controlled):
  """What a controller changed, each setting with its ends."""
  texts = []
  for name, way in controlled.items():
    texts.append(f'{name} {way["first"]:.4g} -> {way["last"]:.4g}')
    if way['changes'] > 1:
      texts[-1] += f' in {way["changes"]} changes'
  return '; '.join(texts) or 'nothing'


def _cosines(summary):
  """Both cosines, and how often they are defined where that isn't always."""
  show = lambda end, form: (
    f'{_shown(summary[f"cosine{end}"], form)} '
    f'({_shown(summary[f"cosine_unclipped{end}"], form)})'
  )
  count = summary.get('cosines', 0)
  if all(
    summary.get(f'{name}_defined', count) == count
    for name in ('cosine', 'cosine_unclipped')
  ):
    return show('', '.3f')
  counts = show('_defined', 'd')
  if summary['cosine_unclipped'] is None:
    return f'{_UNKNOWN} in {count} comparisons'
  return f'{show("", ".3f")}, defined in {counts} of {count} comparisons'


def _span(first, last):
  return first if first == last == _UNKNOWN else f'{first} -> {last}'


def _shown(value, form):
  return _UNKNOWN if value is None else format(value, form)
