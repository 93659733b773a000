"""What a run came to: its summary, and the closing table that shows it."""

import json
import pathlib

import numpy as np

from hmpo_jax import update

_BASELINES = {'majority': 'majority answer', 'random': 'random tokens'}


def make(records, extra, baselines, config):
  """What a run came to; no wall-clock times.

  Args:
    records: of all its steps.
    extra: held-out metrics of the first and the last evaluation, and why a
      controller ended the run, if it did.
    baselines: rewards that need no skill.
    config: of the run.

  Returns:
    Numbers and texts by name, as they stand in summary.json.
  """
  first, last = extra['first_eval'], extra['eval']
  column = lambda name: np.array([record[name] for record in records])
  missing = 1 - first['eval/reward']
  gain = last['eval/reward'] - first['eval/reward']
  return {
      'steps':
          len(records),
      'updates':
          len(records) * config.train.num_epochs * config.train.num_minibatches,
      'early_stop':
          extra['early_stop'],
      'episodes':
          records[-1]['total/episodes'],
      'tokens':
          records[-1]['total/tokens'],
      'heldout_reward_first':
          first['eval/reward'],
      'heldout_reward_first_stderr':
          first['eval/reward_stderr'],
      'heldout_reward_last':
          last['eval/reward'],
      'heldout_reward_last_stderr':
          last['eval/reward_stderr'],
      'heldout_exact_first':
          first['eval/exact'],
      'heldout_exact_last':
          last['eval/exact'],
      'gap_closed':
          gain / missing if missing > 0 else 0.,
      **baselines,
      'reward_last_10':
          float(column('reward/mean')[-10:].mean()),
      'ratio_mean':
          float(column('ratio/mean').mean()),
      'clip_low_frac':
          float(column('clip/low_frac').mean()),
      'clip_high_frac':
          float(column('clip/high_frac').mean()),
      'sigma':
          float(column('log_ratio/last_update_sigma').mean()),
      **_compared(records),
      'max_logit':
          float(column('qk/max_logit').max()),
      'updates_over_monitor_tau_frac':
          float(column('qk/over_monitor_tau_frac').mean()),
      'exploded':
          bool(column('qk/exploded').any()),
      'updates_qk_clipped_frac':
          float(column('qk/clipped_frac').mean()),
      'heads_ever_clipped_frac':
          float(column('qk/heads_ever_clipped_frac')[-1]),
      'smallest_factor':
          float(column('qk/factor_min').min()),
      'skipped': {
          cause: int(column(f'skipped/{cause}').sum())
          for cause in update.SKIP_CAUSES
      },
  }


def read(file: pathlib.Path, num_steps: int) -> dict | None:
  """The summary of a finished run.

  Args:
    file: which it stands in.
    num_steps: of the run, if no controller ends it.

  Returns:
    None if there is none that is whole, or one of a run that was shorter.
  """
  try:
    summary = json.loads(file.read_text(encoding='utf-8'))
    rows(summary, file.parent)
    is_over = summary['steps'] >= num_steps or bool(summary.get('early_stop'))
  except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
    return None
  return summary if is_over else None


def _compared(records):
  """Means over the steps at which gradients were compared, if at any."""
  measured = [r for r in records if r.get('mechanism/step') == r['step']]
  return {
      name: float(np.mean([r[f'mechanism/{name}'] for r in measured]))
      for name in ('cosine', 'cosine_unclipped')
      if measured
  }


def rows(summary, workdir):
  """The closing table of a summary: label and value."""
  skipped = ', '.join(f'{count} {cause}'
                      for cause, count in summary['skipped'].items()
                      if count) or 'none'
  pair = lambda name: (f'{summary[f"{name}_first"]:.3f} -> '
                       f'{summary[f"{name}_last"]:.3f}')
  return [
      ('steps, updates', f'{summary["steps"]}, {summary["updates"]}'),
      *([('ended by the controller',
          summary['early_stop'])] if summary.get('early_stop') else []),
      ('episodes, tokens', f'{summary["episodes"]}, {summary["tokens"]}'),
      ('held-out reward', pair('heldout_reward')),
      ('its standard error', f'{summary["heldout_reward_last_stderr"]:.3f}'),
      ('share of the gap to 1 closed', f'{summary["gap_closed"]:.0%}'),
      ('held-out exact match', pair('heldout_exact')),
      *((f'{name} (reward, exact)', f'{summary[f"{key}_reward"]:.3f}, '
         f'{summary[f"{key}_exact"]:.3f}')
        for key, name in _BASELINES.items()
        if f'{key}_reward' in summary),
      ('mean ratio', f'{summary["ratio_mean"]:.4f}'),
      ('clipped low, high', f'{summary["clip_low_frac"]:.1%}, '
       f'{summary["clip_high_frac"]:.1%}'),
      ('sigma of the log-ratios, last update', f'{summary["sigma"]:.3f}'),
      *([('cosine of gradients p = 0, -1 (unclipped)',
          f'{summary["cosine"]:.3f} ({summary["cosine_unclipped"]:.3f})')]
        if 'cosine' in summary else []),
      ('largest attention logit', f'{summary["max_logit"]:.1f}'),
      ('updates with one above monitor_tau',
       f'{summary["updates_over_monitor_tau_frac"]:.1%}'
       f'{", exploded" if summary["exploded"] else ""}'),
      ('updates that QK-clip changed',
       f'{summary["updates_qk_clipped_frac"]:.1%}'),
      ('updates skipped', skipped),
      ('folder', str(workdir)),
  ]
