"""Logits: does the QK-clip help where attention logits grow?

Query and key weights learn 1, 4, 16 or 64 times as fast as all else, so that
logits grow apart from the learning rate, which stays calm. Confirmatory at the
smallest of these doses whose pilots without a clip lose 0.1 of area (`:pilot`:
64 times, .513 after .654; 16 times lose nothing). tau is 1.5 times the largest
logit of healthy pilots (7.5).

`:query`, exploratory: query weights are multiplied after the warm start, so
that logits start up to 16384 times as large, with logits in float32 and in
float16, whose largest number is 65504. Arms are compared within a dose.

Command   python experiments/compare.py --config=configs/plan_logits.py
          python experiments/report.py --workdir=runs/plan_logits
          with --dry-run: what it will cost here, and what it can show
          the other parts: --config=configs/plan_logits.py:pilot, :query
Device    a laptop's CPU is enough; GPU and TPU run the same command
"""

from hmpo_jax.plan import design

_TAU = 11.25
_RATES = {
  f'qk-x{scale:g}': {'optim.qk_learning_rate_scale': scale}
  for scale in (1.0, 4.0, 16.0, 64.0)
}
_QUERIES = {
  f'query-x{scale:g}-{dtype}': {
    'warm_start.query_scale': scale,
    'model.logits_dtype': dtype,
  }
  for dtype in ('float32', 'float16')
  for scale in (1.0, 16.0, 256.0, 4096.0, 16384.0)
}
_SEEDS = {
  'plan': range(100, 112),
  'pilot': range(1000, 1004),
  'query': range(100, 108),
}


def get_config(part='plan'):
  """HMPO with the QK-clip on and off; part is plan, pilot or query."""
  if part not in _SEEDS:
    raise ValueError(f'{part!r}: must be one of {", ".join(_SEEDS)}')
  is_planned = part == 'plan'
  # In the program that also clips, so that on and off differ in nothing else.
  off = {'optim.tau': float('inf')}
  return design.Plan(
    question='Does the QK-clip help where attention logits grow?',
    exploratory=not is_planned,
    seeds=_SEEDS[part],
    tasks=_QUERIES if part == 'query' else _RATES,
    base={
      'model.attention_entropy': True,
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
      name: design.Variant(overrides, exploratory=not is_planned)
      for name, overrides in {'hmpo': {}, 'hmpo_no_clip': off}.items()
      if part != 'pilot' or overrides
    },
    contrasts=[design.Contrast('hmpo', 'hmpo_no_clip', 'area', 'qk-x64')]
    if is_planned
    else [],
    reference='' if part == 'pilot' else 'hmpo_no_clip',
    family=5 if is_planned else 0,
  )
