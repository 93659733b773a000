"""Logits: does the QK-clip help where attention logits grow?

Query and key weights learn 1, 4, 16 or 64 times as fast as all else, so that
logits grow apart from the learning rate, which stays calm. Confirmatory at the
smallest of these doses whose pilots without a clip lose 0.1 of area (`:pilot`:
64 times, .513 after .654; 16 times lose nothing). tau is 1.5 times the largest
logit of healthy pilots (7.5).

Command   python experiments/compare.py --config=configs/plan_logits.py
          python experiments/report.py --workdir=runs/plan_logits
          with --dry-run: what it will cost here, and what it can show
          the pilots: --config=configs/plan_logits.py:pilot
Device    a laptop's CPU is enough; GPU and TPU run the same command
"""

from hmpo_jax.plan import design

_TAU = 11.25


def get_config(part='plan'):
  """HMPO with the QK-clip on and off at each dose; part is plan or pilot."""
  if part not in ('plan', 'pilot'):
    raise ValueError(f'{part!r}: must be plan or pilot')
  is_pilot = part == 'pilot'
  # In the program that also clips, so that on and off differ in nothing else.
  off = {'optim.tau': float('inf')}
  return design.Plan(
      question='Does the QK-clip help where attention logits grow?',
      exploratory=is_pilot,
      seeds=range(1000, 1004) if is_pilot else range(100, 112),
      tasks={
          f'qk-x{scale:g}': {
              'optim.qk_learning_rate_scale': scale
          } for scale in (1., 4., 16., 64.)
      },
      base={
          'num_steps': 100,
          'loss.clip_eps_low': 0.05,
          'loss.clip_eps_high': 0.05,
          'optim.tau': _TAU,
          'optim.monitor_tau': 1.5 * _TAU,
          'eval.every': 5,
          'mechanism.every': 50,
          'checkpoint.every': 50,
      },
      target=0.7,
      variants={
          name: design.Variant(overrides, exploratory=is_pilot)
          for name, overrides in {
              'hmpo': {},
              'hmpo_no_clip': off
          }.items()
          if not is_pilot or overrides
      },
      contrasts=[] if is_pilot else
      [design.Contrast('hmpo', 'hmpo_no_clip', 'area', 'qk-x64')],
      family=0 if is_pilot else 5)
