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
      variance = mpmath.fsum((value - mean)**2 for value in x) / n
      return float(mean), np.full(n, 1 / n), float(variance / 2)
    top = max(p * value for value in x)
    powers = [mpmath.exp(p * value - top) for value in x]
    total = mpmath.fsum(powers)
    log_mean = top + mpmath.log(total / n)
    weights = [power / total for power in powers]
    log_shares = [p * value - log_mean for value in x]
    divergence = mpmath.fsum(w * l for w, l in zip(weights, log_shares))
    return (float(log_mean / p), np.array(weights,
                                          float), float(divergence / p**2))


def power_mean_loss(logprobs, old_logprobs, advantages, mask, p, eps_low,
                    eps_high):
  """Negative mean over rows of min(M A, clip(M) A)."""
  objectives = []
  for x, advantage in _rows(logprobs, old_logprobs, advantages, mask):
    if p == 0:
      mean = math.prod(math.exp(v) for v in x)**(1 / len(x))
    else:
      mean = (sum(math.exp(v)**p for v in x) / len(x))**(1 / p)
    objectives.append(_clipped(mean, advantage, eps_low, eps_high))
  return -sum(objectives) / len(objectives)


def gspo_loss(logprobs, old_logprobs, advantages, mask, eps_low, eps_high):
  """The same with s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|), as in GSPO."""
  objectives = []
  for new, old, advantage, valid in zip(logprobs, old_logprobs, advantages,
                                        mask):
    length = sum(valid)
    if length:
      probability = math.exp(sum(v for v, m in zip(new, valid) if m))
      old_probability = math.exp(sum(v for v, m in zip(old, valid) if m))
      ratio = (probability / old_probability)**(1 / length)
      objectives.append(_clipped(ratio, advantage, eps_low, eps_high))
  return -sum(objectives) / len(objectives)


def grpo_loss(logprobs, old_logprobs, advantages, mask, eps_low, eps_high):
  """Negative mean over rows of the mean over tokens of min(r A, clip(r) A)."""
  objectives = []
  for x, advantage in _rows(logprobs, old_logprobs, advantages, mask):
    tokens = [_clipped(math.exp(v), advantage, eps_low, eps_high) for v in x]
    objectives.append(sum(tokens) / len(tokens))
  return -sum(objectives) / len(objectives)


def group_advantages(rewards, leave_one_out, ddof, eps):
  """[N, G] advantages over the standard deviation of each group."""
  result = np.zeros(np.shape(rewards))
  for i, group in enumerate(np.float64(rewards)):
    mean = sum(group) / len(group)
    variance = sum((r - mean)**2 for r in group) / (len(group) - ddof)
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
  for new, old, advantage, valid in zip(logprobs, old_logprobs, advantages,
                                        mask):
    x = [float(a) - float(b) for a, b, m in zip(new, old, valid) if m]
    if x:
      yield x, float(advantage)


def _clipped(ratio, advantage, eps_low, eps_high):
  clipped = min(max(ratio, 1 - eps_low), 1 + eps_high)
  return min(ratio * advantage, clipped * advantage)
