"""The atlas: every mean, clip, advantage and staleness beside each other.

Exploratory: it shows where to look, five seeds a cell, and decides nothing.

Command   python experiments/compare.py --config=configs/plan_atlas.py
          python experiments/report.py --workdir=runs/plan_atlas
          with --dry-run: what it will cost here
Device    a laptop's CPU takes a night; a GPU or TPU runs the same command
"""

from hmpo_jax.plan import design

_ORDERS = {'p1': 1.0, 'gspo': 0.0, 'hmpo': -1.0}
_TRACKED = {
  'tracking.rate': 0.1,
  'tracking.target_low': 0.15,
  'tracking.target_high': 0.15,
}
_NO_STD = {'advantage.scale': 'none'}
_NO_BASELINE = _NO_STD | {'advantage.baseline': 'none'}


def get_config():
  """Some 30 variants on sorting, at one learning rate and clip range."""
  return design.Plan(
    question='Where do means, clips, advantages and staleness differ?',
    exploratory=True,
    seeds=range(5),
    tasks={'sort': {}},
    variants={
      name: design.Variant(overrides)
      for name, overrides in _overrides().items()
    },
  )


def _overrides():
  """What each arm changes, by its name."""
  wide = {'loss.clip_eps_low': 0.2, 'loss.clip_eps_high': 0.2}
  found = {
    'grpo': {'loss.name': 'grpo'} | wide,
    'gmpo': {
      'loss.p': 0.0,
      'loss.clip': 'token_log',
      'loss.clip_eps_low': 0.4,
      'loss.clip_eps_high': 0.4,
    },
    'hoelder': {'loss.p': 2.0, 'exponent.kind': 'linear', 'exponent.end': -2.0},
    'ess_matched': {
      'loss.p': 0.0,
      'loss.clip': 'token',
      'exponent.kind': 'matched',
    }
    | wide,
    # Controls.
    'reinforce': {'loss.name': 'reinforce'},
    'gspo_open': {
      'loss.p': 0.0,
      'loss.clip_eps_low': 0.999,
      'loss.clip_eps_high': float('inf'),
    },
    'permuted': {'advantage.permute': True},
  }
  for name, p in _ORDERS.items():
    order = {'loss.p': p}
    found |= {
      name: order,
      f'{name}_geometric': order | {'loss.clip_center': 'geometric'},
      f'{name}_unbiased': order | {'loss.clip_center': 'unbiased'},
      f'{name}_tracked': order | _TRACKED,
      f'{name}_no_std': order | _NO_STD,
      f'{name}_no_baseline': order | _NO_BASELINE,
      f'{name}_stale4': order | {'rollout.staleness': 4},
      f'{name}_stale8': order | {'rollout.staleness': 8},
    }
  return found
