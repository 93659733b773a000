"""Plan folders with planted effects, in the form that runs leave behind."""

import json
import pathlib

import numpy as np

from hmpo_jax.training import update

EPISODES, TOKENS = 128, 1000  # of a step
EVERY = 5  # steps between evaluations
# A value of each metric that a run of configs/smoke.py records, with its
# entropies, and a report reads, where the simulation has no better one.
_TYPICAL = {
  'advantage/effective_group_sum': 0.35,
  'advantage/effective_variance': 0.83,
  'advantage/reward_variance': 0.05,
  'advantage/zero_variance_frac': 0.02,
  'agm/arithmetic': 0.9975,
  'agm/convergence_rate': 0.9995,
  'agm/geometric': 0.995,
  'agm/harmonic': 0.9925,
  'clip/high_frac': 0.02,
  'clip/low_frac': 0.1,
  'loss/live_frac': 0.9,
  'log_ratio/last_update_sigma': 0.2,
  'mechanism/cosine': 0.9,
  'mechanism/cosine_current_p0': 0.95,
  'mechanism/cosine_unclipped': 0.92,
  'mechanism/cosine_unclipped_p1_p0': 0.93,
  'mechanism/cosine_unclipped_p1_pm1': 0.8,
  'mechanism/gradient_variance_current': 0.16,
  'mechanism/gradient_variance_unclipped_p0': 0.8,
  'mechanism/gradient_variance_unclipped_p1': 1.8,
  'mechanism/gradient_variance_unclipped_pm1': 0.7,
  'mechanism/kurtosis': 14.0,
  'mechanism/mask_disagreement_p0_pm1': 0.03,
  'mechanism/mask_disagreement_p1_p0': 0.04,
  'mechanism/norm_ratio': 1.1,
  'mechanism/shift_over_spread': 0.36,
  'mechanism/sigma_sqrt_n': 0.83,
  'qk/clip_drift_k3': 0.0,
  'qk/clipped_frac': 0.0,
  'qk/entropy': 1.2,
  'qk/entropy_min': 0.4,
  'qk/exploded': 0.0,
  'qk/over_monitor_tau_frac': 0.0,
  'ratio/max': 1.2,
  'ratio/mean': 0.99,
  'ratio/min': 0.6,
  'ratio/std': 0.04,
  'update/cosine': 0.2,
  'update/norm': 0.016,
  'nonfinite_values': 0,
}


def describe(rises, seeds, **changes) -> dict:
  """The plan.json of variants {name: rise of the reward} on one task."""
  names = list(rises)
  plan = {
    'name': 'plan_simulated',
    'question': 'Does the report say what was planted?',
    'exploratory': False,
    'tasks': ['sort'],
    'variants': {
      name: {
        'overrides': {
          'loss.p': -1.0 if name == 'hmpo' else 0.0,
          'optim.tau': 100.0,
        },
        'settings': 'own',
        'exploratory': False,
        'note': '',
      }
      for name in names
    },
    'seeds': list(range(seeds)),
    'contrasts': [
      {
        'name': f'{names[0]} - {names[1]}',
        'variant': names[0],
        'baseline': names[1],
        'outcome': outcome,
        'task': '',
        'minus': '',
      }
      for outcome in ('area', 'collapse')
    ]
    if len(names) > 1
    else [],
    'ladders': {},
    'reference': '',
    'margins': {
      'area': 0.02,
      'exact_area': 0.02,
      'collapse': 0.1,
      'rung': 0.25,
    },
    'family': 0,
    'alpha': 0.05,
    'target': 0.8,
    'failure_reward': 0.0,
    'collapse_margin': 0.05,
    'horizon': 40,
    'commit': '0123abc',
    'versions': {'jax': '0.10.2'},
    'device': 'cpu',
    'settings': {},
  }
  plan |= changes
  plan['runs'] = [
    {
      'task': task,
      'variant': variant,
      'seed': seed,
      'folder': f'runs/{task}/{variant}/{seed}',
    }
    for task in plan['tasks']
    for variant in plan['variants']
    for seed in plan['seeds']
  ]
  return plan


def write(workdir, rises, seeds=10, *, failed=(), stop=None, about=None):
  """Writes a plan folder.

  Args:
    workdir: made if missing.
    rises: {variant: rise of the held-out reward from 0.5 on}, or for each
      variant one of each task.
    seeds: number of them.
    failed: {(variant, seed): step} of runs that fail.
    stop: {(variant, seed): step} of runs that still go, 0 for not begun.
    about: what plan.json holds instead of what `describe` gives.

  Returns:
    What plan.json holds.
  """
  workdir, failed, stop = pathlib.Path(workdir), dict(failed), dict(stop or {})
  plan = describe(rises, seeds, **(about or {}))
  for run in plan['runs']:
    arm = run['variant'], run['seed']
    until = failed.get(arm, stop.get(arm, plan['horizon']))
    folder = workdir / run['folder']
    folder.mkdir(parents=True, exist_ok=True)
    rise = rises[run['variant']]
    if isinstance(rise, dict):
      rise = rise[run['task']]
    curve = _curve(run, rise, plan['horizon'])
    if until or arm in failed:
      _dump(folder / 'start.json', curve[0])
    records = [_record(run, curve, step) for step in range(1, until + 1)]
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    (folder / 'metrics.jsonl').write_text(lines, encoding='utf-8')
    if arm in failed:
      reason = 'step 7: 50 updates in a row were skipped | NaN'
      _dump(folder / 'failed.json', {'reason': reason, 'step': until})
    elif arm not in stop:
      _dump(
        folder / 'summary.json',
        {
          'steps': until,
          'heldout_reward_first': curve[0]['eval/reward'],
          'heldout_reward_first_stderr': curve[0]['eval/reward_stderr'],
          'heldout_exact_first': curve[0]['eval/exact'],
        },
      )
  _dump(workdir / 'plan.json', plan)
  return plan


def _curve(run, rise, horizon):
  """Held-out values by step: seeds share most of their noise."""
  common = np.random.default_rng(run['seed'] + 100)
  own = np.random.default_rng([run['seed'], *run['variant'].encode()])
  level = common.normal(0, 0.03) + 0.02 * (run['task'] != 'sort')
  noise = own.normal(0, 0.004, horizon + 1)
  curve = {}
  for step in range(0, horizon + 1, EVERY):
    grown = rise * (1 - np.exp(-3 * step / horizon)) if step else 0
    reward = float(np.clip(0.5 + level + grown + noise[step], 0, 1))
    curve[step] = {
      'eval/reward': reward,
      'eval/reward_stderr': 0.005,
      'eval/exact': max(0.0, reward - 0.4),
      'eval/step': step,
    }
  return curve


def _record(run, curve, step):
  noise = np.random.default_rng([run['seed'], step, *run['variant'].encode()])
  evaluated = curve[step - step % EVERY]
  gap = float(0.005 * np.exp(noise.normal(0, 0.3)))
  order = {'hmpo': -1.0, 'p_one': 1.0, 'learnable': 0.02 * step}
  same_until = 6 + run['seed'] % 3  # tokens of the arms part after it
  digest = [run['seed'], step, *run['task'].encode()]
  if step > same_until:
    digest += run['variant'].encode()
  return (
    {'step': step}
    | _TYPICAL
    | {f'skipped/{cause}': 0 for cause in update.SKIP_CAUSES}
    | {
      'agm/gap': gap,
      'agm/log_gap': gap,
      'log_ratio/row_variance': gap * 1.1,
      'mean/p': order.get(run['variant'], 0.0),
      'qk/max_logit': float(6 + 0.05 * step + noise.normal(0, 0.3)),
      'qk/max_logit_per_head': [1.0, 2.0],
      'reward/mean': float(evaluated['eval/reward'] + noise.normal(0, 0.02)),
      'rollout/digest': int(np.random.default_rng(digest).integers(2**24)),
      'total/episodes': EPISODES * step,
      'total/tokens': TOKENS * step,
    }
    | evaluated
  )


def _dump(file, content):
  file.write_text(json.dumps(content), encoding='utf-8')
