"""What the kernels compute, by literal loops in float64 or 50 digits.

Nothing here is fast or stable, except by the digits that it carries.
"""

import math

import jax
import jax.experimental
import mpmath
import numpy as np


def x64():
  """A context in which jax computes in float64."""
  # It moved: the name in jax.experimental went away when the other came.
  homes = (jax, jax.experimental)
  return next(m for m in homes if hasattr(m, 'enable_x64')).enable_x64(True)


def log_power_mean(log_x, p):
  """log M_p of one row and its derivatives, to 50 digits.

  Args:
    log_x: [n] valid tokens, taken as they are: round them to float32 before.
    p: order, taken as it is.

  Returns:
    value, derivatives in each log x_t [n] and derivative in p, as floats.
  """
  with mpmath.workdps(50):
    x = [mpmath.mpf(float(value)) for value in log_x]
    p, n = mpmath.mpf(float(p)), len(x)
    if p == 0:
      mean = mpmath.fsum(x) / n
      variance = mpmath.fsum((value - mean) ** 2 for value in x) / n
      return float(mean), np.full(n, 1 / n), float(variance / 2)
    top = max(p * value for value in x)
    powers = [mpmath.exp(p * value - top) for value in x]
    total = mpmath.fsum(powers)
    log_mean = top + mpmath.log(total / n)
    weights = [power / total for power in powers]
    log_shares = [p * value - log_mean for value in x]
    divergence = mpmath.fsum(w * s for w, s in zip(weights, log_shares))
    return (
      float(log_mean / p),
      np.array(weights, float),
      float(divergence / p**2),
    )


def power_mean(ratios, p):
  """((1/n) sum r^p)^(1/p) of one row, the n-th root of the product at p = 0."""
  if p == 0:
    return math.prod(r ** (1 / len(ratios)) for r in ratios)
  return (math.fsum(r**p for r in ratios) / len(ratios)) ** (1 / p)


def power_mean_loss(
  logprobs, old_logprobs, advantages, mask, p, eps_low, eps_high
):
  """Negative mean over rows of min(M A, clip(M) A)."""
  objectives = [
    clipped(
      power_mean([math.exp(v) for v in x], p), advantage, eps_low, eps_high
    )
    for x, advantage in _rows(logprobs, old_logprobs, advantages, mask)
  ]
  return -sum(objectives) / len(objectives)


def gspo_loss(logprobs, old_logprobs, advantages, mask, eps_low, eps_high):
  """The same with s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|), as in GSPO."""
  objectives = []
  for new, old, advantage, valid in zip(
    logprobs, old_logprobs, advantages, mask
  ):
    length = sum(valid)
    if length:
      probability = math.exp(sum(v for v, m in zip(new, valid) if m))
      old_probability = math.exp(sum(v for v, m in zip(old, valid) if m))
      ratio = (probability / old_probability) ** (1 / length)
      objectives.append(clipped(ratio, advantage, eps_low, eps_high))
  return -sum(objectives) / len(objectives)


def token_clip_loss(logprobs, old_logprobs, advantages, mask, p, low, high):
  """Negative mean over rows of M(r') A; r' is within low or high, by A."""
  objectives = []
  for x, advantage in _rows(logprobs, old_logprobs, advantages, mask):
    bound = lambda r, a=advantage: min(r, high) if a > 0 else max(r, low)
    mean = power_mean([bound(math.exp(v)) for v in x], p)
    objectives.append(mean * advantage)
  return -sum(objectives) / len(objectives)


def token_loss(
  logprobs,
  old_logprobs,
  advantages,
  mask,
  of_token,
  aggregation='sequence-mean-token-mean',
  length_scale=1.0,
):
  """Negative aggregate of of_token(ratio, advantage, log-probability)."""
  rows = []
  for new, old, advantage, valid in zip(
    logprobs, old_logprobs, advantages, mask
  ):
    if any(valid):
      rows.append(
        [
          of_token(math.exp(float(a) - float(b)), float(advantage), float(a))
          for a, b, m in zip(new, old, valid)
          if m
        ]
      )
  if aggregation == 'token-mean':
    return -sum(map(sum, rows)) / sum(map(len, rows))
  if aggregation == 'sequence-mean-token-sum':
    return -sum(map(sum, rows)) / len(rows) / length_scale
  return -sum(sum(row) / len(row) for row in rows) / len(rows)


def group_advantages(rewards, leave_one_out, ddof, eps):
  """[N, G] advantages over the standard deviation of each group."""
  result = np.zeros(np.shape(rewards))
  for i, group in enumerate(np.float64(rewards)):
    mean = sum(group) / len(group)
    variance = sum((r - mean) ** 2 for r in group) / (len(group) - ddof)
    for j, reward in enumerate(group):
      baseline = mean
      if leave_one_out:
        baseline = (sum(group) - reward) / (len(group) - 1)
      result[i, j] = (reward - baseline) / (math.sqrt(variance) + eps)
  return result


def log_softmax(logits, temperature):
  """[V] log-probabilities of one row of logits; -inf is allowed."""
  scaled = [float(logit) / temperature for logit in logits]
  top = max(scaled)
  log_total = top + math.log(math.fsum(math.exp(s - top) for s in scaled))
  return [s - log_total for s in scaled]


def _rows(logprobs, old_logprobs, advantages, mask):
  """Log-ratios of the valid tokens and advantage, of rows that have any."""
  for new, old, advantage, valid in zip(
    logprobs, old_logprobs, advantages, mask
  ):
    x = [float(a) - float(b) for a, b, m in zip(new, old, valid) if m]
    if x:
      yield x, float(advantage)


def clipped(ratio, advantage, eps_low, eps_high, dual_clip=math.inf):
  """min(r A, clip(r) A), at least dual_clip A where A < 0."""
  inside = min(max(ratio, 1 - eps_low), 1 + eps_high)
  objective = min(ratio * advantage, inside * advantage)
  return max(objective, dual_clip * advantage) if advantage < 0 else objective
