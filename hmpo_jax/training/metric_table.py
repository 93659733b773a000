"""What every metric is: its names, its unit and its meaning, one row each.

docs/telemetry.md shows these rows, TensorBoard the row of each of its scalars.
"""

import fnmatch
from typing import NamedTuple


class Row(NamedTuple):
  """Metrics that one sentence describes."""

  names: str  # parted by spaces; a name may be a pattern with *
  unit: str  # '' for a number without one; one for each name, or for all
  meaning: str


# By the part of the documentation that shows them.
ROWS = {
  'Reward and evaluation': (
    Row(
      'reward/mean reward/std',
      'reward',
      "mean and standard deviation of the rollout's rewards, in [0, "
      '1]; those that are not finite are left out',
    ),
    Row(
      'reward/exact',
      'share',
      'responses of the rollout that are right as a whole',
    ),
    Row(
      'reward/share eval/share',
      'share',
      "of the answer's tokens that stand at their place, mean over the "
      'responses of the rollout, and over held-out ones; where no '
      'function on the host scores',
    ),
    Row(
      'reward/kl',
      'nats',
      'KL of a response to the warm start that was taken from its '
      'reward, mean; where there is one',
    ),
    Row(
      'eval/reward eval/reward_stderr',
      'reward',
      'mean reward of greedy responses to held-out prompts, and its '
      'standard error; NaN counts as 0 and in `eval/nan_rewards`',
    ),
    Row('eval/exact', 'share', 'held-out responses that are right as a whole'),
    Row('eval/nan_rewards', 'count', 'held-out responses whose reward was NaN'),
    Row('eval/length', 'tokens', 'of the held-out responses, mean'),
    Row('eval/step', 'steps', 'when the values under `eval/` were measured'),
    Row(
      'total/episodes total/tokens',
      'count',
      'responses and their tokens since the first step',
    ),
  ),
  'Advantages': (
    Row(
      'advantage/reward_variance',
      'reward squared',
      'of the rewards within groups, before scaling',
    ),
    Row(
      'advantage/mean advantage/std advantage/min advantage/max '
      'advantage/abs_mean',
      'advantage',
      'of the advantages of a rollout',
    ),
    Row(
      'advantage/group_sum_abs_max',
      'advantage',
      'largest absolute sum of the advantages of a group: 0 but for rounding',
    ),
    Row(
      'advantage/zero_variance_frac',
      'share',
      'groups of equal rewards, whose advantages are 0',
    ),
    Row(
      'advantage/nonfinite_rewards',
      'count',
      'rewards that were NaN or infinite',
    ),
    Row(
      'advantage/effective_mean advantage/effective_variance',
      'advantage',
      'over live rows, of A_i M_i: what the mean makes of the advantages',
    ),
    Row(
      'advantage/effective_group_sum',
      'advantage',
      'absolute sum of the effective advantages of a group, mean over '
      'groups and epochs',
    ),
    Row(
      'advantage/negative_frac advantage/positive_frac',
      'share',
      'rows with A < 0, with A > 0',
    ),
  ),
  'Ratios and means': (
    Row(
      'ratio/mean ratio/std ratio/min ratio/max',
      'ratio',
      "of the rows' means M_i, over the updates of a step",
    ),
    Row(
      'ratio/token/mean ratio/token/std ratio/token/min ratio/token/max',
      'ratio',
      "of the tokens' ratios",
    ),
    Row(
      'ratio/clamped_frac',
      'share',
      'tokens whose log-ratio is beyond `loss.log_ratio_max`; largest '
      'of the updates',
    ),
    Row(
      'ratio/first_update_abs_log',
      'nats',
      'largest absolute log-ratio of the first update: 0 unless the '
      'sampler lags',
    ),
    Row(
      'ratio/recompute_gap',
      'nats',
      'by how much two passes of the same policy differ; the first '
      "update's ratios are 1 in spite of it",
    ),
    Row(
      'log_ratio/mean log_ratio/abs_max',
      'nats',
      "mean of the tokens' log-ratios, and the largest absolute one",
    ),
    Row(
      'log_ratio/row_variance',
      'nats squared',
      'of the log-ratios within a row, mean over rows',
    ),
    Row(
      'log_ratio/skew',
      '',
      'third standardised moment of the log-ratios within a row, mean '
      'over rows',
    ),
    Row(
      'log_ratio/last_update_sigma',
      'nats',
      'root mean within-row variance of the log-ratios in the last update',
    ),
    Row(
      'token_weight/ess',
      'share',
      "effective sample size 1 / (n sum w^2) of the weights of a row's "
      'n tokens in its gradient',
    ),
    Row(
      'token_weight/entropy token_weight/max',
      'nats, share',
      "entropy and largest of the weights of a row's tokens in its gradient",
    ),
    Row(
      'mean/p mean/dlog_dp',
      'order, nats',
      'order in use, and d log M_p / dp, means over rows',
    ),
    Row(
      'agm/arithmetic agm/geometric agm/harmonic',
      'ratio',
      "arithmetic, geometric and harmonic mean of a row's ratios "
      'before any clip, mean over rows',
    ),
    Row(
      'agm/gap agm/log_gap',
      'ratio, nats',
      'A - H and log A - log H: how far the ratios of a row scatter',
    ),
    Row(
      'agm/arithmetic_iterates agm/harmonic_iterates',
      'ratio',
      'a_0 to a_K and h_0 to h_K of the arithmetic-harmonic iteration '
      'in this step',
    ),
    Row(
      'agm/arithmetic_iterates_clip agm/harmonic_iterates_clip',
      '',
      'the same of the means in units of the clip range',
    ),
    Row(
      'agm/convergence_rate',
      'share',
      '1 - mean over the iterates of (a - h) / (a + h) of the '
      'arithmetic-harmonic iteration',
    ),
  ),
  'Orders, clips and the loss': (
    Row('exponent/p', 'order', 'order of the mean after the step'),
    Row(
      'exponent/gradient exponent/gradient_snr',
      '',
      'dJ/dp and its signal-to-noise ratio over rows',
    ),
    Row('exponent/at_bound', '0 or 1', 'whether a bound holds the order'),
    Row('exponent/decision', '', 'of the adaptive order: -1 down, 1 up'),
    Row(
      'exponent/gap_fast exponent/gap_slow exponent/gap_trend',
      'nats, nats, share',
      'fast and slow average of log A - log H, and fast / slow - 1',
    ),
    Row(
      'exponent/ignored_gaps exponent/ignored_gradients',
      'count',
      'gaps and gradients that were not finite',
    ),
    Row(
      'clip/low_frac clip/high_frac',
      'share',
      'rows stopped below 1 - eps (A < 0), above 1 + eps (A > 0); of '
      'losses that clip tokens, mean over rows of token fractions',
    ),
    Row(
      'clip/dual_frac',
      'share',
      'rows, or tokens in the same way, stopped by the dual clip',
    ),
    Row(
      'clip/outside_frac',
      'share',
      'rows, or tokens in the same way, whose ratio lies outside the '
      'range on either side, whatever the sign of A: stopped or not; 0 '
      'of losses without a range',
    ),
    Row(
      'clip/eps_low clip/eps_high',
      'ratio',
      'how far below and above 1 the clip range in use reaches',
    ),
    Row('loss/total', 'reward', 'the loss with its KL and entropy terms'),
    Row('loss/live_frac', 'share', 'rows that pass a gradient'),
    Row('policy/entropy', 'nats', 'of the policy, mean over tokens'),
    Row(
      'kl_old/k1 kl_old/k3',
      'nats per token',
      'estimates of the KL to the sampler',
    ),
    Row(
      'kl/reference',
      'nats per token',
      'KL to the warm start in the loss, where there is one',
    ),
    Row(
      'kl/wide_gap_frac',
      'share',
      'tokens whose gap to the warm start is beyond the bound of the '
      'estimator, where there is one',
    ),
    Row(
      'control/learning_rate control/epsilon control/p control/agm_iterations',
      '',
      'settings that held in the step, where there is a controller, of '
      'those that it can change',
    ),
  ),
  'Gradients of several means': (
    Row(
      'mechanism/cosine mechanism/cosine_unclipped',
      '',
      'cosine of the gradients for p = 0 and p = -1, with and without '
      'the clip: at 1 the choice of the mean is void',
    ),
    Row(
      'mechanism/cosine_*',
      '',
      'cosine of the gradients of two others of p1, p0, pm1 and '
      'current, the loss of the run with the order in use',
    ),
    Row(
      'mechanism/norm_ratio',
      '',
      'length of the gradient for p = -1 over that for p = 0, without a clip',
    ),
    Row(
      'mechanism/norm_ratio_*',
      '',
      'length of the gradient of another of them over that for p = 0, '
      'with a clip or `unclipped`',
    ),
    Row(
      'mechanism/mask_disagreement_*',
      'share',
      "rows whose gradient one of two losses stops and the other doesn't",
    ),
    Row(
      'mechanism/sigma',
      'nats',
      'sigma of the log-ratios of the batch whose gradients are compared',
    ),
    Row(
      'mechanism/gradient_variance_*',
      'gradient squared',
      "trace of the covariance over rows of the rows' gradients under "
      'p1, p0, pm1 and current, with a clip or `unclipped`',
    ),
    Row(
      'mechanism/sigma_sqrt_n',
      'nats',
      'sigma sqrt(n) of that batch, n the harmonic mean of the tokens '
      'of its rows: what an order moves a clip by is half of it, in '
      'deviations of log M_0',
    ),
    Row(
      'mechanism/shift_over_spread',
      '',
      'mean of log M_0 - log M_-1 over the deviation of log M_0 over '
      'rows: half of sigma sqrt(n) if tokens of a row were independent',
    ),
    Row(
      'mechanism/kurtosis',
      '',
      'excess kurtosis of the log-ratios around the mean of their row, '
      'all tokens of that batch together: 0 of a Gaussian',
    ),
    Row(
      'mechanism/step',
      'steps',
      'when the values under `mechanism/` were measured',
    ),
  ),
  'Rollouts': (
    Row(
      'rollout/length_mean rollout/tokens',
      'tokens',
      'of the responses, mean and sum',
    ),
    Row('rollout/truncated_frac', 'share', 'responses cut before a stop token'),
    Row(
      'rollout/digest',
      'integer',
      'a number below 2^24 made of all tokens and the mask: runs that '
      'sampled the same have the same',
    ),
    Row(
      'rollout/sampler_gap_max',
      'nats',
      "largest difference of the sampler's log-probabilities and the "
      "training forward's; with `rollout.old_logprobs=sampler` of the "
      "first update's minibatch, and absent with staleness",
    ),
    Row(
      'rollout/kept_mass',
      'probability',
      'of the tokens that top-k or top-p sampling drew from, where it is on',
    ),
  ),
  'Attention logits and the optimizer': (
    Row(
      'qk/max_logit qk/max_logit_per_head qk/max_logit_per_update',
      'logit',
      "largest visible attention logit, of a step's training passes",
    ),
    Row(
      'qk/entropy qk/entropy_min qk/entropy_per_head',
      'nats',
      'entropy of the attention weights, mean over the queries of the '
      'training passes that are no padding: of all heads of all layers, '
      'of the sharpest one in any update, and of each; with '
      '`model.attention_entropy`',
    ),
    Row(
      'qk/over_monitor_tau_frac',
      'share',
      'updates with a logit above `optim.monitor_tau`, skipped ones '
      'included, whatever `optim.qk_clip` is',
    ),
    Row(
      'qk/exploded',
      '0 or 1',
      'whether ten updates in a row, of those that were made, had one, '
      'at any time so far',
    ),
    Row(
      'qk/clipped_frac', 'share', 'updates in which the QK-clip changed weights'
    ),
    Row(
      'qk/factor_min',
      'factor',
      'smallest one by which the QK-clip scaled the logits of a head; '
      '1 for none',
    ),
    Row(
      'qk/heads_ever_clipped_frac',
      'share',
      'heads of all layers that were clipped at least once',
    ),
    Row(
      'qk/clip_drift_k3 qk/clip_drift_abs_max',
      'nats per token, nats',
      "KL of the policy before to that after the last update's clip, "
      "and the largest change of a token's log-probability; where "
      'there is a clip',
    ),
    Row(
      'update/norm update/cosine grad/norm',
      'parameters',
      'size of the update, its cosine with the negative gradient, size '
      'of the gradient',
    ),
    Row(
      'skipped/*',
      'count',
      'updates skipped, by cause: `reward`, `logprob`, `statistic`, '
      '`loss`, `gradient`, `update`; `no_signal` is a minibatch '
      'without a live row; `in_a_row` counts the last ones for a '
      'numerical cause',
    ),
    Row(
      'nonfinite/*',
      'count',
      'log-probabilities and advantages that were not finite, over all updates',
    ),
    Row(
      'nonfinite_values', 'count', 'values of this record that were not finite'
    ),
  ),
  'Times, in timing.jsonl': (
    Row(
      'step_s eval_s', 'seconds', 'of a step, and of the evaluation after it'
    ),
    Row(
      'tokens_per_s',
      'tokens per second',
      'sampled tokens over the time of the step',
    ),
  ),
}


def describe(name: str) -> str:
  """Unit and meaning of a metric as a sentence; '' if no row has its name."""
  for rows in ROWS.values():
    for row in rows:
      if any(fnmatch.fnmatchcase(name, known) for known in row.names.split()):
        meaning = row.meaning[0].upper() + row.meaning[1:]
        return f'{meaning}. Unit: {row.unit or "none"}.'
  return ''


def markdown(part: str) -> str:
  """The rows of a part as a table of Markdown."""
  lines = ['| metric | unit | meaning |', '|---|---|---|']
  for row in ROWS[part]:
    names = ', '.join(f'`{name}`' for name in row.names.split())
    lines.append(f'| {names} | {row.unit} | {row.meaning} |')
  return '\n'.join(lines)
