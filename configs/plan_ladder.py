"""Ladder: how large may a step be under each mean before training collapses?

Confirmatory. p = 1, 0 and -1 clip the same rows (`clip_center=geometric`: a row
is stopped by its geometric mean, whatever p), so that they differ in their
token weights alone; `hmpo` has the harmonic mean's own range around 1, and so
its mask too. The QK-clip is off. Rungs: Muon's learning rate from 3e-4, at
which all is calm, and from 2.8 to 16 times that, around the rate at which half
of the pilots of p = 0 collapse (1 of 8 at 4 times, 5 at 5.7 times: `:pilot`). AdamW's rate of what Muon
does not move stays at 3e-4.

Command   python experiments/compare.py --config=configs/plan_ladder.py
          python experiments/report.py --workdir=runs/plan_ladder
          with --dry-run: what it will cost here, and what it can show
          the pilots: --config=configs/plan_ladder.py:pilot
Device    a laptop's CPU is enough; GPU and TPU run the same command
"""

from hmpo_jax.plan import design

_RATE = 3e-4
_MULTIPLES = (1, 2.83, 4, 5.66, 8, 11.3, 16)
_PILOTS = (1, 2, 2.83, 4, 5.66, 8, 11.3, 16, 22.6)


def get_config(part='plan'):
  """Four arms on seven rungs, 12 seeds; `part` is plan or pilot."""
  if part not in ('plan', 'pilot'):
    raise ValueError(f'{part!r}: must be plan or pilot')
  is_pilot = part == 'pilot'
  variant, contrast = design.Variant, design.Contrast
  one_mask = {'loss.clip_center': 'geometric'}
  rungs = design.rungs('sort', _RATE, _PILOTS if is_pilot else _MULTIPLES)
  arms: dict[str, design.Overrides] = {
    'p_one': {'loss.p': 1.0} | one_mask,
    'gspo': {'loss.p': 0.0} | one_mask,
    'p_minus_one': {'loss.p': -1.0} | one_mask,
    'hmpo': {'loss.p': -1.0},
  }
  notes = {
    'p_one': "the arithmetic mean's token weights, GSPO's mask",
    'p_minus_one': "HMPO's token weights, GSPO's mask",
    'hmpo': 'HMPO with its own mask: a range around 1',
  }
  return design.Plan(
    question='How large may a step be under each mean of the ratios before '
    'training collapses?',
    exploratory=is_pilot,
    seeds=range(1000, 1008) if is_pilot else range(100, 112),
    tasks=rungs,
    ladders={'sort': tuple(rungs)},
    base={
      'num_steps': 100,
      'loss.clip_eps_low': 0.05,
      'loss.clip_eps_high': 0.05,
      'optim.tau': float('inf'),
      'eval.every': 5,
      'mechanism.every': 50,
      'checkpoint.every': 50,
    },
    target=0.7,
    variants={
      name: variant(overrides, exploratory=is_pilot, note=notes.get(name, ''))
      for name, overrides in arms.items()
      if not is_pilot or name == 'gspo'
    },
    contrasts=[]
    if is_pilot
    else [
      contrast('hmpo', 'gspo', 'area', 'sort'),
      contrast('p_minus_one', 'p_one', 'area', 'sort'),
    ],
    reference='gspo',
    family=0 if is_pilot else 5,
  )
