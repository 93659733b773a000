"""Controls: what must be seen, or not be seen, if the other plans are right.

Exploratory. Under one update per rollout all ratios are 1, so that the arms of
three orders must be one run; with permuted advantages, or a learning rate of 0,
nothing can be learned. The rest asks what the means' differences depend on: a
sampler that tells some log-probabilities wrong, a learning rate that decays, a
warm start that Muon made.

Command   python experiments/compare.py --config=configs/plan_controls.py
          python experiments/report.py --workdir=runs/plan_controls
          with --dry-run: what it will cost here, and what it can show
Device    a laptop's CPU is enough; GPU and TPU run the same command
"""

from hmpo_jax.plan import design

_ORDERS = {'gspo': 0.0, 'hmpo': -1.0}
_CONTROLS: dict[str, design.Overrides] = {
  '': {},
  '_mismatch': {
    'rollout.old_logprobs': 'sampler',
    'rollout.mismatch_frac': 0.02,
    'rollout.mismatch_size': 1.0,
  },
  '_decay': {'optim.decay': 0.1, 'optim.decay_steps': 100.0},
  '_muon_start': {'warm_start.optimizer': 'muon'},
  '_permuted': {'advantage.permute': True},
  '_rate_0': {'optim.learning_rate': 0.0, 'optim.adam_learning_rate': 0.0},
}
_ON_POLICY = {'train.num_epochs': 1, 'train.num_minibatches': 1}


def get_config():
  """GSPO and HMPO under five controls, three orders on-policy, 8 seeds."""
  arms: dict[str, design.Overrides] = {
    f'{name}{suffix}': {**overrides, 'loss.p': p}
    for suffix, overrides in _CONTROLS.items()
    for name, p in _ORDERS.items()
  }
  for name, p in (*_ORDERS.items(), ('p_one', 1.0)):
    arms[f'{name}_on_policy'] = {'loss.p': p} | _ON_POLICY
  return design.Plan(
    question='Do the controls show what they must?',
    exploratory=True,
    seeds=range(100, 108),
    tasks={'sort': {}},
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
      name: design.Variant(overrides) for name, overrides in arms.items()
    },
    reference='gspo',
  )
