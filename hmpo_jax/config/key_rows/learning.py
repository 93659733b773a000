"""The keys of an update: the loss, its order and clip range, the optimizer."""

import math

from hmpo_jax.config.key_rows import row
from hmpo_jax.kernels import clips
from hmpo_jax.kernels import exponents
from hmpo_jax.kernels import kl
from hmpo_jax.kernels import losses
from hmpo_jax.kernels import ratios
from hmpo_jax.optim import factory
from hmpo_jax.optim import muon_clip
from hmpo_jax.optim import orthogonal

LOSS = row.section(
  'The objective. Keys up to `log_ratio_max` are arguments of the losses; one '
  'that the loss does not take must keep its default.',
  name=row.static('power_mean', row.one_of(*losses.LOSSES), 'which loss'),
  p=row.traced(
    -1.0,
    row.FINITE,
    'order of the mean: 1 arithmetic, 0 geometric (GSPO), -1 harmonic (HMPO)',
  ),
  p_clip=row.traced(
    math.inf, row.ORDER_OR_INF, 'order of the mean that decides the clip'
  ),
  p_grad=row.traced(
    math.inf, row.ORDER_OR_INF, "order of the gradient's token weights"
  ),
  clip=row.static(
    'sequence',
    row.one_of(*losses.CLIPS),
    'what is clipped: the mean, each ratio, or each log-ratio',
  ),
  clip_center=row.static(
    'one',
    row.one_of(*clips.CENTERS),
    'where the clip range lies: around 1, where every order has the clip mask '
    'of GSPO, or where the variance of the log-ratios moves it',
  ),
  clip_eps_low=row.traced(
    0.05,
    row.Range(lambda x: row.NARROWEST <= x <= 1, 'from 1e-6 to 1'),
    "ratio's distance below 1 at which it is clipped",
  ),
  clip_eps_high=row.traced(
    0.05,
    row.Range(lambda x: x >= row.NARROWEST, 'at least 1e-6 (inf = off)'),
    "ratio's distance above 1 at which it is clipped",
  ),
  dual_clip=row.traced(
    math.inf,
    row.Range(lambda x: x > 1, 'above 1 (inf = off)'),
    'bound on the ratio where A < 0',
  ),
  tau_positive=row.traced(
    1.0, row.POSITIVE, "temperature of SAPO's gate where A > 0"
  ),
  tau_negative=row.traced(
    1.05, row.POSITIVE, "temperature of SAPO's gate where A <= 0"
  ),
  aggregation=row.static(
    'sequence-mean-token-mean',
    row.one_of(*ratios.AGGREGATIONS),
    'how the terms of tokens become one number',
  ),
  length_scale=row.traced(
    1.0, row.POSITIVE, 'tokens that divide `sequence-mean-token-sum`'
  ),
  log_ratio_max=row.traced(
    20.0, row.POSITIVE_OR_INF, "bound on a token's log-ratio, in nats"
  ),
  kl_estimator=row.static(
    'none',
    row.one_of('none', *kl.LOSS_ESTIMATORS),
    'estimator of the KL to the warm start',
  ),
  kl_weight=row.traced(
    0.0, row.finite_at_least(0), 'weight of that KL in the loss, per token'
  ),
  kl_off_policy=row.static(
    False, row.FLAG, 'weight the tokens of that KL by their ratios'
  ),
  entropy_bonus=row.static(
    False, row.FLAG, 'add the entropy of the policy to the objective'
  ),
  entropy_weight=row.traced(
    0.0, row.FINITE, 'weight of that entropy, per token'
  ),
)

EXPONENT = row.section(
  'How p evolves from `loss.p`. Each key but `kind` belongs to the kinds that '
  'its row names, and must keep its default under the others.',
  kind=row.traced('fixed', row.one_of(*exponents.KINDS), 'how p evolves'),
  end=row.traced(-2.0, row.FINITE, 'linear, cosine: p after `num_steps`'),
  num_steps=row.traced(
    300.0, row.finite_at_least(1), 'linear, cosine: steps of the schedule'
  ),
  rate=row.traced(
    0.1, row.finite_at_least(0), 'learnable: change of p per unit of dJ/dp'
  ),
  normalize=row.traced(
    False,
    row.FLAG,
    'learnable: dJ/dp in units of its own size, the mean |dJ/dp| of 100 '
    'updates; then a rate of 0.01 goes from 0 to -2 in 40 steps if the sign '
    'stays',
  ),
  placebo=row.traced(
    False, row.FLAG, 'learnable, as a control: dJ/dp with the sign turned'
  ),
  pull=row.traced(
    0.0,
    row.finite_at_least(0),
    'learnable: pull towards `prior`, in dJ/dp per unit of p',
  ),
  prior=row.traced(0.0, row.FINITE, 'learnable: p that `pull` leads to'),
  low=row.traced(-2.0, row.FINITE, 'learnable, adaptive: lower bound on p'),
  high=row.traced(2.0, row.FINITE, 'learnable, adaptive: upper bound on p'),
  gap_low=row.traced(
    0.01,
    row.finite_at_least(0),
    'adaptive: gap log A - log H below which p may rise, in nats',
  ),
  gap_high=row.traced(
    0.05,
    row.finite_at_least(0),
    'adaptive: gap log A - log H above which p falls, in nats',
  ),
  gap_quantiles=row.traced(
    False,
    row.FLAG,
    'adaptive: `gap_low` and `gap_high` are quantiles, from 0 to 1, of the '
    'last `slow_window` gaps',
  ),
  trend=row.traced(
    0.1,
    row.finite_at_least(0),
    'adaptive: relative excess of the fast average that counts as a rise',
  ),
  fast_window=row.traced(
    5.0, row.finite_at_least(1), 'adaptive: steps of the fast average'
  ),
  slow_window=row.traced(
    25.0, row.finite_at_least(1), 'adaptive: steps of the slow average'
  ),
  step_size=row.traced(
    0.05, row.finite_at_least(0), 'adaptive: change of p per decision'
  ),
  path=row.loop(
    '',
    row.FILE,
    'replayed: metrics.jsonl of the run whose orders are taken, step by step; '
    'the last one stays. The orders are traced',
  ),
)

TRACKING = row.section(
  'How the clip range follows clipped fractions.',
  rate=row.traced(
    0.0,
    row.finite_at_least(0),
    'change of log eps per step; 0 leaves the range fixed',
  ),
  target_low=row.traced(
    0.2, row.UNIT, 'share of the rows with A < 0 to be clipped'
  ),
  target_high=row.traced(
    0.2, row.UNIT, 'share of the rows with A > 0 to be clipped'
  ),
  eps_min=row.traced(1e-4, row.WIDTH, 'lower bound on both widths'),
  eps_max=row.traced(0.9, row.WIDTH, 'upper bound on both widths'),
)

TRAIN = row.section(
  'The updates of one step.',
  num_epochs=row.static(2, row.at_least(1), 'passes over a rollout'),
  num_minibatches=row.static(
    4, row.at_least(1), 'updates per pass; divides the sequences'
  ),
  num_microbatches=row.static(
    1,
    row.at_least(1),
    'parts of a minibatch, of which one at a time is in memory; divides its '
    'rows. The update is the same',
  ),
  max_grad_norm=row.traced(
    math.inf, row.POSITIVE_OR_INF, "bound on the gradient's global norm"
  ),
  max_skips=row.loop(
    50,
    row.at_least(1),
    'updates skipped in a row for a numerical cause before the run stops',
  ),
)

OPTIM = row.section(
  'The optimizer. Of the keys from `adam_learning_rate` to `adam_b2` each '
  'optimizer uses some; the others must keep their defaults.',
  name=row.static(
    'muon_clip', row.one_of(*factory.OPTIMIZERS), 'which optimizer'
  ),
  learning_rate=row.traced(
    3e-4,
    row.finite_at_least(0),
    'of the hidden matrices, under adamw of all parameters; the RMS of an '
    'update is 0.2 times it under Muon',
  ),
  qk_learning_rate_scale=row.traced(
    1.0,
    row.finite_at_least(0),
    'factor on the learning rate of query and key kernels',
  ),
  weight_decay=row.traced(
    0.0, row.finite_at_least(0), 'decoupled, per unit of learning rate'
  ),
  decay=row.traced(
    1.0,
    row.UNIT,
    "factor on both learning rates, a controller's too, after `decay_steps`, "
    'linear from 1 in the first step on; 1 is off',
  ),
  decay_steps=row.traced(
    300.0, row.finite_at_least(1), 'steps until that factor is reached'
  ),
  adam_learning_rate=row.traced(
    3e-4,
    row.finite_at_least(0),
    'under Muon, of what AdamW moves: embeddings, norms, biases and head',
  ),
  adam_weight_decay=row.traced(0.0, row.finite_at_least(0), 'of the same'),
  momentum=row.traced(0.95, row.BELOW_ONE, "Muon's momentum"),
  nesterov=row.static(
    False, row.FLAG, "Nesterov's momentum; otherwise the heavy ball"
  ),
  muon_heads=row.static(
    'joint',
    row.one_of('joint', 'per_head'),
    'what of an attention kernel is one matrix: all heads, or each',
  ),
  coefficients=row.static(
    'keller',
    row.one_of(*orthogonal.COEFFICIENTS),
    'coefficients of the Newton-Schulz iteration',
  ),
  products=row.static(
    'float32',
    row.one_of(*orthogonal.DTYPES),
    'dtype of the products of the Newton-Schulz iteration',
  ),
  adam_b1=row.static(
    0.9, row.BELOW_ONE, "decay of AdamW's average of gradients"
  ),
  adam_b2=row.static(
    0.95, row.BELOW_ONE, "decay of AdamW's average of squared gradients"
  ),
  qk_clip=row.static(
    'weights',
    row.one_of(*muon_clip.MODES),
    'what the QK-clip rescales: nothing (logits are still monitored), the '
    'weights, or the gains of the norms (with `model.qk_norm`)',
  ),
  tau=row.traced(
    100.0,
    row.POSITIVE_OR_INF,
    'largest attention logit that the QK-clip leaves alone; inf leaves all, '
    'in the program that also clips: bit-equal with `qk_clip=off`, which is '
    'another program',
  ),
  qk_alpha=row.traced(0.5, row.UNIT, "the queries' share of the rescaling"),
  monitor_tau=row.traced(
    100.0,
    row.POSITIVE,
    'attention logit above which an update is counted, whatever `qk_clip` is; '
    f'after {muon_clip.EXPLODED_AFTER} of them in a row a run has exploded',
  ),
)
