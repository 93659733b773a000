"""Advantages of responses relative to the other responses to their prompt."""

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import checks
from hmpo_jax.kernels import precision

BASELINES = ('mean', 'leave_one_out', 'none')


def group_advantages(
  rewards: jax.Array,
  *,
  baseline: str = 'mean',
  scale: str = 'std',
  ddof: int = 1,
  eps: float = 1e-6,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Advantages within groups, A_ij = (R_ij - b_ij) / (std_i + eps).

  A reward that is not finite says nothing about its response: the response
  gets advantage 0, and baseline and deviation are those of the n_i others. A
  group of equal rewards, or of fewer than two, is 0 throughout, exactly, but
  see baseline 'none'.

  The deviation is that of the whole group with any baseline: that of the
  others alone is 0 where one reward differs from all others. So |A_ij| is at
  most (n - 1) / sqrt(n), or sqrt(n) if left out, with ddof 1, and the sum over
  a group is 0.

  Baseline 'none' sets b to 0: the control that shows what a baseline is worth.
  No sum is 0 then, and no |A_ij| bounded. On-policy the gradient has the same
  expectation and more variance; where rewards are 0 or more, every response is
  made more likely, the worst of its group too, no advantage is below 0, and the
  low side of a clip never stops. With scale 'none' a group of equal rewards R,
  or with one, has the advantages R, a signal unless R is 0; with scale 'std' it
  has no deviation to be measured in and stays 0 throughout.

  See "DeepSeekMath" by Shao et al. (https://arxiv.org/abs/2402.03300), section
  4.1; scale 'none' follows "Understanding R1-Zero-Like Training" by Liu et al.
  (https://arxiv.org/abs/2503.20783).

  Args:
    rewards: [N, G] one row for each prompt; those beyond 1/16 of the largest
      float count as that.
    baseline: 'mean' of the group, 'leave_one_out': of its other members, or
      'none'.
    scale: 'std' divides by the group's standard deviation, 'none' by 1.
    ddof: 1 for the unbiased variance (divisor n - 1), 0 for the population's.
    eps: added to the standard deviation, in units of the reward.

  Returns:
    advantages [N, G] and metrics: moments and extremes of the advantages over
    all responses, the mean over groups of the variance of the rewards, the
    fraction of groups without one, the largest |sum_j A_ij|, which is rounding
    where there is a baseline, and the number of rewards that are not finite.

  Raises:
    ValueError: no reward, or an unknown baseline, scale or ddof.
  """
  _check(rewards, baseline, scale, ddof)
  rewards, offset, finite = _offsets(rewards)
  spread = -jnp.min(offset, 1, keepdims=True)
  varies = spread > 0
  # In units of the spread, no square overflows or vanishes.
  unit = jnp.where(varies, spread, 1)
  offset /= unit
  count = jnp.sum(finite, 1, keepdims=True, dtype=offset.dtype)
  count, others = jnp.maximum(count, 1), jnp.maximum(count - 1, 1)
  centred = offset - jnp.sum(offset, 1, keepdims=True) / count
  centred = jnp.where(finite, centred, 0)
  variance = jnp.sum(centred**2, 1, keepdims=True) / (others if ddof else count)
  signal = centred * (count / others if baseline == 'leave_one_out' else 1)
  if baseline == 'none':
    signal = jnp.where(varies, rewards / unit, 0)
  if scale == 'std':
    deviation = jnp.sqrt(jnp.where(varies, variance, 1))
    advantages = signal / (deviation + eps / unit)
  else:
    advantages = rewards if baseline == 'none' else signal * unit
  dtype = advantages.dtype
  return advantages, {
    'advantage/reward_variance': jnp.mean(variance * unit**2),
    'advantage/zero_variance_frac': jnp.mean(~varies, dtype=dtype),
    'advantage/nonfinite_rewards': jnp.sum(~finite, dtype=dtype),
    'advantage/abs_mean': jnp.mean(jnp.abs(advantages)),
    'advantage/mean': jnp.mean(advantages),
    'advantage/std': jnp.std(advantages),
    'advantage/min': jnp.min(advantages),
    'advantage/max': jnp.max(advantages),
    'advantage/group_sum_abs_max': jnp.max(jnp.abs(jnp.sum(advantages, 1))),
  }


def permute_within_groups(key: jax.Array, advantages: jax.Array) -> jax.Array:
  """Shuffles each row of advantages [N, G]; the key is consumed.

  The control of a comparison: the distribution of the advantages stays, what
  they say about the responses is gone, so that nothing may be learned.
  """
  return jax.random.permutation(key, advantages, axis=1, independent=True)


def _check(rewards, baseline, scale, ddof):
  checks.ranks(2, rewards=rewards)
  if 0 in rewards.shape:
    raise ValueError(f'{rewards.shape=}: must hold a group and a response')
  if baseline not in BASELINES:
    raise ValueError(f'{baseline=}: must be one of {", ".join(BASELINES)}')
  if scale not in ('std', 'none'):
    raise ValueError(f'{scale=}: must be std or none')
  if ddof not in (0, 1):
    raise ValueError(f'{ddof=}: must be 0 or 1')


def _offsets(rewards):
  """Rewards, the same relative to their group's largest, which are finite.

  Equal rewards leave exactly 0: the residue of a rounded mean, 1e-8, would
  grow to 1e-2 in the division by eps. Where not finite, both are 0.
  """
  dtype = precision.dtype_of(rewards)
  rewards = jnp.asarray(rewards, dtype)
  finite = jnp.isfinite(rewards)
  # Of the difference of two, a compiler may take the inverse: it is not 0.
  limit = jnp.finfo(dtype).max / 16
  rewards = jnp.clip(rewards, -limit, limit)
  largest = jnp.max(rewards, 1, keepdims=True, where=finite, initial=-jnp.inf)
  offset = jnp.where(finite, rewards - largest, 0)
  return jnp.where(finite, rewards, 0), offset, finite
