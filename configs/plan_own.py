"""Own: GSPO, HMPO and p = 1, each at its own best settings.

Confirmatory: is HMPO better than GSPO, or as good, where each has the learning
rate and clip range that suit it? A grid of both on seeds of their own, the two
best points again on eight more, then 16 fresh seeds. The tracked arms let the
clip range follow a clipped fraction instead, from the tuned one on.

Command   python experiments/compare.py --config=configs/plan_own.py
          python experiments/report.py --workdir=runs/plan_own
          with --dry-run: what it will cost here, and what it can show
Device    a laptop's CPU is enough; GPU and TPU run the same command
"""

from hmpo_jax.plan import design

_ORDERS = {'gspo': 0., 'hmpo': -1., 'p_one': 1.}
_TARGETS = (0.05, 0.15, 0.3)


def get_config():
  """Three tuned and six tracked arms under two rewards, 16 seeds."""
  variant = design.Variant
  variants = {
      name: variant({'loss.p': p}, 'own', exploratory=name == 'p_one')
      for name, p in _ORDERS.items()
  }
  for name in ('gspo', 'hmpo'):
    for target in _TARGETS:
      variants[f'{name}_tracked_{target:g}'] = variant(
          {
              'loss.p': _ORDERS[name],
              'tracking.rate': 0.1,
              'tracking.target_low': target,
              'tracking.target_high': target
          },
          name,
          note='its clip range follows this share of the rows of each sign')
  return design.Plan(
      question='Is HMPO better than GSPO, each at its own best settings?',
      seeds=range(100, 116),
      tasks={
          'share': {},
          'exact': {
              'reward.kind': 'exact'
          },
      },
      base={
          'num_steps': 100,
          'optim.tau': float('inf'),
          'eval.every': 10,
          'mechanism.every': 50,
          'checkpoint.every': 50,
      },
      tuning=design.Tuning(
          learning_rates=(3e-4, 6e-4, 1.2e-3),
          eps=(0.02, 0.05, 0.12),
          seeds=(1100, 1101, 1102),
          final_seeds=range(1110, 1118)),
      target=0.7,
      variants=variants,
      contrasts=[design.Contrast('hmpo', 'gspo', 'area', 'exact')],
      family=5)
