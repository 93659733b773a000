"""Telemetry plan: records of many kinds for those who develop controllers.

Not a comparison: one seed of each mean, calm and stressed, and a policy that
collapses. What results/agm_telemetry/ holds was made by

Command   python experiments/compare.py --config=configs/plan_telemetry.py
          python experiments/export_telemetry.py --workdir=runs/plan_telemetry
Device    a laptop's CPU is enough; GPU and TPU run the same command
Time      about 6 minutes on two cores, with all compilation
"""

from hmpo_jax.plan import design


def get_config():
  """Seven ways to train, under two regimes."""
  variant = design.Variant
  moving = {'loss.p': 0.0, 'exponent.low': -2.0, 'exponent.high': 2.0}
  return design.Plan(
    question='What do records look like, calm, stressed and collapsing?',
    exploratory=True,
    seeds=range(1),
    tasks={
      'calm': {},
      'stressed': {'optim.learning_rate': 7e-3, 'optim.tau': 20.0},
    },
    base={
      'num_steps': 64,
      'optim.learning_rate': 1e-3,
      'eval.every': 8,
      'mechanism.every': 16,
      'checkpoint.every': 32,
    },
    variants={
      'arithmetic': variant({'loss.p': 1.0}),
      'geometric': variant({'loss.p': 0.0}),
      'harmonic': variant({'loss.p': -1.0}),
      'limit': variant({'loss.name': 'arithmetic_harmonic'}),
      'learnable': variant(
        moving | {'exponent.kind': 'learnable', 'exponent.rate': 1.0}
      ),
      'adaptive': variant(moving | {'exponent.kind': 'adaptive'}),
      # Rewards that are shuffled within their groups teach nothing, while
      # every update has its full length.
      'collapsing': variant({'loss.p': -1.0, 'advantage.permute': True}),
    },
    contrasts=[],
  )
