"""The long plan: do attention logits explode under long rollouts?

Confirmatory, on responses of 512 tokens, in a calm regime and at the learning
rate of configs/stress.py:long, at which logits explode unless the QK-clip holds
them. Sorting 511 digits exactly is out of reach of a policy of this size: what
counts is the share of the digits at their place, and whether a run collapses.

Command   python experiments/compare.py --config=configs/plan_long.py
          python experiments/report.py --workdir=runs/plan_long
          with --dry-run: what it will cost here, and what it can show
Device    a GPU or TPU; on a laptop's CPU a run takes some ten minutes
"""

from hmpo_jax.plan import design

_TAU = 30.0


def get_config():
  """GSPO and HMPO, clip on and off, in two regimes, eight seeds each."""
  variant = design.Variant
  gspo, hmpo = {'loss.p': 0.0}, {'loss.p': -1.0}
  no_clip = {'optim.tau': float('inf')}
  return design.Plan(
    question='Do attention logits explode under long rollouts, and does the '
    'QK-clip, or the mean, prevent it?',
    seeds=range(8),
    tasks={
      'calm': {'optim.learning_rate': 1e-3},
      'stress': {'optim.learning_rate': 3e-2},
    },
    base={
      'num_steps': 20,
      'task.num_digits': 511,
      'rollout.num_prompts': 4,
      'rollout.temperature': 0.5,
      'warm_start.num_steps': 100,
      'warm_start.batch_size': 16,
      'train.num_microbatches': 2,
      'optim.tau': _TAU,
      'optim.monitor_tau': 1.5 * _TAU,
      'eval.every': 4,
      'eval.num_prompts': 64,
      'mechanism.every': 4,
      'checkpoint.every': 4,
    },
    target=0.5,
    start_exact=(0.0, 0.9),
    variants={
      'gspo': variant(gspo, exploratory=False),
      'hmpo': variant(hmpo, exploratory=False),
      'gspo_no_clip': variant(gspo | no_clip, exploratory=False),
      'hmpo_no_clip': variant(hmpo | no_clip, exploratory=False),
    },
    contrasts=[
      design.Contrast('hmpo', 'gspo', 'area', 'stress'),
      design.Contrast('hmpo_no_clip', 'gspo_no_clip', 'collapse', 'stress'),
      design.Contrast('gspo', 'gspo_no_clip', 'collapse', 'stress'),
      design.Contrast('hmpo', 'hmpo_no_clip', 'collapse', 'stress'),
    ],
  )
