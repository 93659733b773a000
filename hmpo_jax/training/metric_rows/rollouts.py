"""Metrics of what was sampled: rewards, advantages, lengths, times."""

import functools

from hmpo_jax.training.metric_rows import row

_reward = functools.partial(row.Row, group='reward', section='learning')
_evaluated = functools.partial(row.Row, stamp='eval/step')
_advantage = functools.partial(row.Row, group='advantage', section='advantages')
_learning = functools.partial(row.Row, group='learning')

REWARDS = (
  _reward(
    'reward/mean reward/std',
    'reward',
    "mean and standard deviation of the rollout's rewards, in [0, 1]; those "
    'that are not finite are left out',
    report={
      'reward/mean:mean': ('episode reward', '.3f'),
      'reward/mean:tail': ('episode reward, last tenth', '.3f'),
    },
  ),
  _reward(
    'reward/exact',
    'share',
    'responses of the rollout that are right as a whole',
  ),
  _reward(
    'reward/share eval/share',
    'share',
    "of the answer's tokens that stand at their place, mean over the "
    'responses of the rollout, and over held-out ones; where no function on '
    'the host scores',
    stamp='- eval/step',
  ),
  _reward(
    'reward/kl',
    'nats',
    'KL of a response to the warm start that was taken from its reward, '
    'mean; where there is one',
  ),
  _evaluated(
    'eval/reward eval/reward_stderr',
    'reward',
    'mean reward of greedy responses to held-out prompts, and its standard '
    'error; NaN counts as 0 and in `eval/nan_rewards`',
    group='reward',
  ),
  _evaluated(
    'eval/exact',
    'share',
    'held-out responses that are right as a whole',
    group='reward',
  ),
  _evaluated(
    'eval/nan_rewards', 'count', 'held-out responses whose reward was NaN'
  ),
  _evaluated('eval/length', 'tokens', 'of the held-out responses, mean'),
  _evaluated(
    'eval/step',
    'steps',
    'when the values under `eval/` were measured',
    board='-',
    stamp='-',
  ),
  _learning(
    'total/episodes total/tokens',
    'count',
    'responses and their tokens since the first step',
  ),
)

ADVANTAGES = (
  _advantage(
    'advantage/reward_variance',
    'reward squared',
    'of the rewards within groups, before scaling',
    report={
      'advantage/reward_variance:mean': (
        'variance in a group before scaling',
        '.4f',
      )
    },
  ),
  _advantage(
    'advantage/mean advantage/std advantage/min advantage/max '
    'advantage/abs_mean',
    'advantage',
    'of the advantages of a rollout',
    bounds='any not_negative any any not_negative',
  ),
  _advantage(
    'advantage/group_sum_abs_max',
    'advantage',
    'largest absolute sum of the advantages of a group: 0 but for rounding',
    bounds='not_negative',
  ),
  _advantage(
    'advantage/zero_variance_frac',
    'share',
    'groups of equal rewards, whose advantages are 0',
    report={
      'advantage/zero_variance_frac:mean': (
        'groups of equal rewards',
        '.1%',
        'advantage/effective_group_sum:mean',
      )
    },
  ),
  _advantage(
    'advantage/nonfinite_rewards', 'count', 'rewards that were NaN or infinite'
  ),
  _advantage(
    'advantage/effective_mean advantage/effective_variance',
    'advantage',
    'over live rows, of A_i M_i: what the mean makes of the advantages',
    needs='rows+signal',
    bounds='any not_negative',
    report={'advantage/effective_variance:mean': ('variance of A M_p', '.3f')},
  ),
  _advantage(
    'advantage/effective_group_sum',
    'advantage',
    'absolute sum of the effective advantages of a group, mean over groups '
    'and epochs',
    needs='rows',
    bounds='not_negative',
    report={
      'advantage/effective_group_sum:mean': ('group sum of A M_p', '.3f')
    },
  ),
  _advantage(
    'advantage/negative_frac advantage/positive_frac',
    'share',
    'rows with A < 0, with A > 0',
  ),
)

ROLLOUTS = (
  row.Row(
    'rollout/length_mean rollout/tokens',
    'tokens',
    'of the responses, mean and sum',
  ),
  row.Row(
    'rollout/truncated_frac', 'share', 'responses cut before a stop token'
  ),
  row.Row(
    'rollout/digest',
    'integer',
    'a number below 2^24 made of all tokens and the mask: runs that sampled '
    'the same have the same',
    board='-',
  ),
  row.Row(
    'rollout/sampler_gap_max',
    'nats',
    "largest difference of the sampler's log-probabilities and the training "
    "forward's; with `rollout.old_logprobs=sampler` of the first update's "
    'minibatch, and absent with staleness',
    bounds='not_negative',
  ),
  row.Row(
    'rollout/kept_mass',
    'probability',
    'of the tokens that top-k or top-p sampling drew from, where it is on',
  ),
)

TIMES = (
  row.Row(
    'step_s eval_s', 'seconds', 'of a step, and of the evaluation after it'
  ),
  row.Row(
    'tokens_per_s',
    'tokens per second',
    'sampled tokens over the time of the step',
  ),
)
