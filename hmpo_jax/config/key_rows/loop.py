"""The keys of what surrounds the updates: start, evaluation, control, files."""

from hmpo_jax.config.key_rows import row

WARM_START = row.section(
  'The supervised start.',
  num_steps=row.loop(
    55, row.at_least(0), 'supervised steps; 0 starts from scratch'
  ),
  batch_size=row.static(
    64, row.at_least(1), 'prompts of a step, with their answers'
  ),
  optimizer=row.static(
    'adam',
    row.one_of('adam', 'muon'),
    'Adam on all parameters, or Muon on the hidden matrices',
  ),
  learning_rate=row.loop(
    3e-3, row.finite_at_least(0), "Adam's, with a linear decay to 0"
  ),
  muon_learning_rate=row.loop(
    0.01,
    row.finite_at_least(0),
    "Muon's, with the same decay. After 55 steps on sorting it is as far as "
    'Adam (held-out reward .51 and .53 over 8 seeds), after 70 further (.76 '
    'and .64)',
  ),
  stop_reward=row.switch(
    0.0,
    row.UNIT,
    'share of right tokens in sampled responses that ends the warm start '
    'before `num_steps`; 0 is off',
  ),
  query_scale=row.loop(
    1.0, row.POSITIVE, 'factor on the query weights, and so on the logits'
  ),
  folder=row.loop(
    '',
    row.FOLDER,
    'cache of warm starts; if empty, `warm_start/` in the run folder',
  ),
)

EVAL = row.section(
  'The held-out evaluation.',
  every=row.loop(
    20, row.at_least(1), 'steps between evaluations; step 0 always has one'
  ),
  num_prompts=row.loop(
    512,
    row.at_least(2),
    'prompts, held out by a hash of the prompt and decoded greedily',
  ),
)

MECHANISM = row.section(
  'How the means would differ.',
  every=row.switch(
    20,
    row.at_least(0),
    "steps between comparisons of the means' gradients, and of the policy "
    'before and after a QK-clip; the first and the last step always have one. '
    '0 never makes them, and the program of a step is much smaller',
  ),
)

CONTROL = row.section(
  'What a controller may decide while the run goes on. What it asks beyond the '
  'bounds of the last eight keys is cut to them.',
  function=row.loop(
    '',
    row.FUNCTION,
    'the controller, a function or class, from the record of a step to a dict '
    'of decisions',
  ),
  timeout=row.loop(60.0, row.SECONDS, 'seconds that one call may take'),
  every=row.loop(1, row.at_least(1), 'steps between decisions'),
  may_stop=row.loop(False, row.FLAG, 'it may end the run'),
  history=row.loop(10, row.at_least(5), 'steps in `arithmetic_history`'),
  agm_iterations=row.loop(5, row.ITERATIONS, 'K of `agm/arithmetic_iterates`'),
  learning_rate_low=row.loop(
    1e-5, row.finite_at_least(0), 'lower bound on the learning rate'
  ),
  learning_rate_high=row.loop(
    5e-3, row.finite_at_least(0), 'upper bound on the learning rate'
  ),
  epsilon_low=row.loop(0.01, row.WIDTH, 'lower bound on `loss.clip_eps_high`'),
  epsilon_high=row.loop(0.5, row.WIDTH, 'upper bound on `loss.clip_eps_high`'),
  p_low=row.loop(-2.0, row.FINITE, 'lower bound on p'),
  p_high=row.loop(2.0, row.FINITE, 'upper bound on p'),
  agm_iterations_low=row.loop(
    1, row.ITERATIONS, 'lower bound on `agm_iterations`'
  ),
  agm_iterations_high=row.loop(
    10, row.ITERATIONS, 'upper bound on `agm_iterations`'
  ),
)

CHECKPOINT = row.section(
  'What a run can resume from.',
  every=row.loop(
    50,
    row.at_least(1),
    'steps between checkpoints; the last step always has one. Each is '
    'evaluated, as it may become the best one',
  ),
  keep=row.loop(
    2, row.at_least(1), 'newest ones that are kept, beside the best one'
  ),
)
