"""Advantages of responses relative to the other responses to their prompt."""

import chex
import jax
import jax.numpy as jnp


def group_advantages(
    rewards: jax.Array,
    *,
    baseline: str = 'mean',
    scale: str = 'std',
    ddof: int = 1,
    eps: float = 1e-6) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Advantages within groups, A_ij = (R_ij - b_ij) / (std_i + eps).

  See "DeepSeekMath" by Shao et al. (https://arxiv.org/abs/2402.03300), section
  4.1; scale 'none' follows "Understanding R1-Zero-Like Training" by Liu et al.
  (https://arxiv.org/abs/2503.20783).

  Args:
    rewards: [N, G] one row for each prompt.
    baseline: 'mean' of the group, or 'leave_one_out': of its other members.
    scale: 'std' divides by the group's standard deviation, 'none' by 1.
    ddof: 1 for the unbiased variance (divisor G - 1), 0 for the population's.
    eps: added to the standard deviation, in units of the reward.

  Returns:
    advantages [N, G], exactly 0 in a group of equal rewards, and metrics.

  Raises:
    ValueError: unknown baseline, scale or ddof, or a group of fewer than two.
  """
  chex.assert_rank(rewards, 2)
  size = rewards.shape[1]
  if size < 2:
    raise ValueError(
        f'a group needs at least 2 responses, got {rewards.shape=}')
  if baseline not in ('mean', 'leave_one_out'):
    raise ValueError(f'{baseline=}: must be mean or leave_one_out')
  if scale not in ('std', 'none'):
    raise ValueError(f'{scale=}: must be std or none')
  if ddof not in (0, 1):
    raise ValueError(f'{ddof=}: must be 0 or 1')
  rewards = rewards.astype(jnp.promote_types(rewards.dtype, jnp.float32))
  # Relative to the largest, equal rewards leave exactly 0: the residue of a
  # rounded mean, 1e-8, would grow to 1e-2 in the division by eps.
  offset = rewards - jnp.max(rewards, 1, keepdims=True)
  varies = jnp.any(offset != 0, 1, keepdims=True)
  centred = offset - jnp.mean(offset, 1, keepdims=True)
  variance = jnp.sum(centred**2, 1, keepdims=True) / (size - ddof)
  advantages = centred * (
      size / (size - 1) if baseline == 'leave_one_out' else 1)
  if scale == 'std':
    advantages /= jnp.where(varies, jnp.sqrt(variance), 1) + eps
  # Not only the response whose reward is infinite: its group has no mean.
  finite = jnp.all(jnp.isfinite(rewards), 1, keepdims=True)
  advantages = jnp.where(finite, advantages, jnp.nan)
  return advantages, {
      'advantage/reward_variance': jnp.mean(variance),
      'advantage/zero_variance_frac': jnp.mean(~varies, dtype=rewards.dtype),
      'advantage/abs_mean': jnp.mean(jnp.abs(advantages)),
  }


def permute_within_groups(key: jax.Array, advantages: jax.Array) -> jax.Array:
  """Shuffles each row of advantages [N, G]; the key is consumed.

  The control of a comparison: the distribution of the advantages stays, what
  they say about the responses is gone, so that nothing may be learned.
  """
  return jax.random.permutation(key, advantages, axis=1, independent=True)
