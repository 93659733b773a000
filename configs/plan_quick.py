"""Quick plan: does the comparison work, from the command to the report?

Four cells of three seeds each show every part of a comparison in minutes. Three
seeds are no evidence: the report is marked exploratory and gives no verdict.

Command   python experiments/compare.py --config=configs/plan_quick.py
          python experiments/report.py --workdir=runs/plan_quick
Device    a laptop's CPU is enough; GPU and TPU run the same command
Time      about 3 minutes on two cores, with all compilation
"""

from hmpo_jax.plan import design


def get_config():
  """GSPO and HMPO with the QK-clip on and off, on sorting."""
  variant = design.Variant
  off = {'optim.tau': float('inf')}  # in the program that also clips
  return design.Plan(
    question='Does the comparison work, from the command to the report?',
    exploratory=True,
    seeds=range(3),
    tasks={'sort': {}},
    base={
      'num_steps': 120,
      # Logits must pass tau in these steps; learning suffers from it.
      'optim.learning_rate': 3e-3,
      'optim.tau': 8.0,
      'optim.monitor_tau': 12.0,
      'eval.every': 10,
      'mechanism.every': 20,
      'checkpoint.every': 30,
    },
    target=0.6,
    variants={
      'gspo': variant({'loss.p': 0.0}),
      'hmpo': variant({'loss.p': -1.0}),
      'gspo_no_clip': variant({'loss.p': 0.0} | off),
      'hmpo_no_clip': variant({'loss.p': -1.0} | off),
    },
    contrasts=[
      design.Contrast('hmpo', 'gspo', 'area'),
      design.Contrast('hmpo', 'gspo', 'collapse'),
      design.Contrast('gspo', 'gspo_no_clip', 'area'),
      design.Contrast('hmpo', 'hmpo_no_clip', 'area'),
    ],
  )
