"""Own: GSPO, HMPO and p = 1, each at its own best settings.

Confirmatory: is HMPO better than GSPO, or as good, where each has the learning
rate and clip range that suit it, and whole answers are paid? A grid of both on
seeds of their own, the two best points again on eight more, then 16 fresh
seeds. The tracked arms let the clip range follow a clipped fraction instead,
from the tuned one on.

The start and the rates are those of pilots (plan_calm.py:pilot): after the
default warm start whole answers are right too seldom for anything to be
learned, and at 3e-4 the first steps cost more than 100 steps win back.

Command   python experiments/compare.py --config=configs/plan_own.py
          python experiments/report.py --workdir=runs/plan_own
          each right token paid: --config=configs/plan_own.py:share
          with --dry-run: what it will cost here, and what it can show
Device    a laptop's CPU is enough; GPU and TPU run the same command
"""

from hmpo_jax.plan import design

_ORDERS = {'gspo': 0.0, 'hmpo': -1.0, 'p_one': 1.0}
_TARGETS = (0.05, 0.15, 0.3)
_EXACT = {
  'reward.kind': 'exact',
  'num_steps': 200,
  'warm_start.num_steps': 80,
  'optim.adam_learning_rate': 1e-4,
}
_RATES = {'exact': (1e-4, 2e-4, 4e-4), 'share': (3e-4, 6e-4, 1.2e-3)}


def get_config(paid='exact'):
  """Three tuned and six tracked arms, 16 seeds; exact or share is paid."""
  if paid not in _RATES:
    raise ValueError(f'{paid!r}: must be one of {", ".join(_RATES)}')
  is_exact = paid == 'exact'
  variant = design.Variant
  variants = {
    name: variant(
      {'loss.p': p}, 'own', exploratory=not is_exact or name == 'p_one'
    )
    for name, p in _ORDERS.items()
  }
  for name in ('gspo', 'hmpo'):
    for target in _TARGETS:
      variants[f'{name}_tracked_{target:g}'] = variant(
        {
          'loss.p': _ORDERS[name],
          'tracking.rate': 0.1,
          'tracking.target_low': target,
          'tracking.target_high': target,
        },
        name,
        note='its clip range follows this share of the rows of each sign',
      )
  return design.Plan(
    question='Is HMPO better than GSPO, each at its own best settings?',
    exploratory=not is_exact,
    seeds=range(100, 116),
    tasks={paid: _EXACT if is_exact else {}},
    base={
      'num_steps': 100,
      'optim.tau': float('inf'),
      'eval.every': 10,
      'mechanism.every': 50,
      'checkpoint.every': 50,
    },
    tuning=design.Tuning(
      learning_rates=_RATES[paid],
      eps=(0.02, 0.05, 0.12),
      seeds=(1100, 1101, 1102),
      max_extensions=1,
      final_seeds=range(1110, 1118),
    ),
    target=0.4 if is_exact else 0.7,
    variants=variants,
    contrasts=[design.Contrast('hmpo', 'gspo', 'area', 'exact')]
    if is_exact
    else [],
    family=5 if is_exact else 0,
  )
