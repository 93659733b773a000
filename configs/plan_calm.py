"""Calm: what does the mean change where training is calm?

Confirmatory in one contrast: does it depend on the reward which order is better?
One task pays each right token (`share`), the other only answers that are right
as a whole (`exact`); both start from the same warm starts. The other arms,
exploratory, split HMPO - GSPO at GSPO's settings into token weights and clip
mask: `hmpo` has both, `weights_only` and `mask_only` one of them. p_one and
p_minus_one share GSPO's mask. `reinforce` has neither ratios nor a clip.

Command   python experiments/compare.py --config=configs/plan_calm.py
          python experiments/report.py --workdir=runs/plan_calm
          with --dry-run: what it will cost here, and what it can show
Device    a laptop's CPU is enough; GPU and TPU run the same command
"""

from hmpo_jax.plan import design


def get_config(part='plan'):
  """Nine arms under two rewards, 16 seeds; part is plan or pilot."""
  if part not in ('plan', 'pilot'):
    raise ValueError(f'{part!r}: must be plan or pilot')
  if part == 'pilot':
    return _pilot()
  variant = design.Variant
  one_mask = {'loss.clip_center': 'geometric'}
  gspo, hmpo = {'loss.p': 0.0}, {'loss.p': -1.0}
  adamw = {'optim.name': 'adamw'}
  return design.Plan(
    question='What does the mean of the ratios change where training is '
    'calm, and does that hang on what is paid?',
    seeds=range(100, 116),
    tasks={
      'share': {},
      'exact': {'reward.kind': 'exact'},
    },
    base={
      'num_steps': 100,
      'loss.clip_eps_low': 0.05,
      'loss.clip_eps_high': 0.05,
      'optim.tau': float('inf'),
      'eval.every': 5,
      'mechanism.every': 25,
      'checkpoint.every': 50,
    },
    target=0.7,
    variants={
      'gspo': variant(gspo),
      'hmpo': variant(hmpo, note="at GSPO's settings"),
      'weights_only': variant(
        gspo | {'loss.p_grad': -1.0, 'loss.p_clip': 0.0},
        note="HMPO's token weights, clipped by GSPO's mean",
      ),
      'mask_only': variant(
        gspo | {'loss.p_grad': 0.0, 'loss.p_clip': -1.0},
        note="GSPO's token weights, clipped by HMPO's mean",
      ),
      'p_one': variant(
        {'loss.p': 1.0} | one_mask,
        exploratory=False,
        note="the arithmetic mean's token weights, GSPO's mask",
      ),
      'p_minus_one': variant(
        hmpo | one_mask,
        exploratory=False,
        note="HMPO's token weights, GSPO's mask",
      ),
      'reinforce': variant({'loss.name': 'reinforce'}),
      'gspo_adamw': variant(gspo | adamw),
      'hmpo_adamw': variant(hmpo | adamw),
    },
    contrasts=[
      design.Contrast('p_one', 'p_minus_one', 'exact_area', 'exact', 'share'),
    ],
    reference='gspo',
    family=5,
  )


def _pilot():
  """From which start, at which rates, whole answers are learned: GSPO."""
  variant = design.Variant
  tasks: dict[str, design.Overrides] = {
    f'{kind}-after-{steps}': {
      'reward.kind': kind,
      'warm_start.num_steps': steps,
    }
    for kind in ('share', 'exact')
    for steps in (80, 110, 150)
  }
  for kind, rate in (('share', 1e-4), ('exact', 1e-4), ('exact', 3e-5)):
    tasks[f'{kind}-after-80-rate-{rate:g}'] = {
      **tasks[f'{kind}-after-80'],
      'optim.learning_rate': rate,
      'optim.adam_learning_rate': rate,
    }
  return design.Plan(
    question='From which warm start, at which learning rate, are whole '
    'answers learned?',
    exploratory=True,
    seeds=range(1000, 1004),
    tasks=tasks,
    base={
      'num_steps': 100,
      'loss.clip_eps_low': 0.05,
      'loss.clip_eps_high': 0.05,
      'optim.tau': float('inf'),
      'eval.every': 5,
      'mechanism.every': 50,
      'checkpoint.every': 50,
    },
    target=0.9,
    variants={
      'gspo': variant({'loss.p': 0.0}),
      'gspo_adamw': variant(
        {
          'loss.p': 0.0,
          'optim.name': 'adamw',
          'optim.adam_learning_rate': 3e-4,  # AdamW has no use for it
        }
      ),
    },
  )
