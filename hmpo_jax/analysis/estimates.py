"""How good gradient estimates are, against a gradient that is known.

See "Monte Carlo Gradient Estimation in Machine Learning" by Mohamed et al.
(https://arxiv.org/abs/1906.10652) for bias and variance of such estimates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Moments(NamedTuple):
  """What a sample of gradients g of one group each tells about E g.

  u is the unit vector along the true gradient. Squares of means are less what
  the sampling of the mean adds to them, so that they may be below 0.
  """

  along: jax.Array  # E g . u
  along_square: jax.Array  # (E g . u)^2
  mean_square: jax.Array  # |E g|^2
  variance: jax.Array  # tr Cov g


class Quality(NamedTuple):
  """How close c g comes to the true gradient t, with c >= 0 the best factor."""

  mse: np.ndarray  # E |c g - t|^2 / |t|^2, from 0 to 1
  bias_square: np.ndarray  # the same with infinitely many prompts
  variance: np.ndarray  # the rest, mse - bias_square
  noise: np.ndarray  # tr Cov g / |E g|^2, whatever t is
  slope: np.ndarray  # E g . t / |t|^2, without c: 1 for an unbiased estimate


def moments_of(gradients: jax.Array, truth: jax.Array) -> Moments:
  """Moments [] of gradients [M, ...] of M >= 2 groups, truth [...] not 0.

  Raises:
    ValueError: fewer than two groups, which have no variance.
  """
  count = len(gradients)
  if count < 2:
    raise ValueError(f'{count} groups: must be at least 2')
  truth = truth.ravel()
  gradients = gradients.reshape(count, -1)
  unit = truth / jnp.linalg.norm(truth)
  along = jnp.matmul(gradients, unit, precision='highest')
  mean = jnp.mean(gradients, axis=0)
  variance = jnp.sum((gradients - mean) ** 2) / (count - 1)
  mean_along = jnp.mean(along)
  return Moments(
    along=mean_along,
    along_square=mean_along**2 - jnp.var(along, ddof=1) / count,
    mean_square=jnp.sum(mean**2) - variance / count,
    variance=variance,
  )


def quality(
  moments: Moments, truth_norm: np.ndarray | float, num_prompts: int
) -> Quality:
  """How good the mean of num_prompts groups is, after the best common factor.

  Advantages are scaled, a mean over tokens is 1 / T of a sum, and a learning
  rate is tuned: the length of an estimate g says nothing. With the best c >= 0,

    mse = min_c E |c g - t|^2 / |t|^2 = 1 - (E g . t)^2 / (|t|^2 E |g|^2),

  which tends to 1 - cos(E g, t)^2 as the prompts become many; 1 where g points
  away from t. An estimate that is t but for a factor and noise has no bias.

  Args:
    moments: of groups.
    truth_norm: |t|, broadcasts with the moments.
    num_prompts: N, the groups in one batch.

  Returns:
    Arrays of the moments' shape. Of few samples a bias may be below 0; all that
    gradients of 0 say is an mse of 1.
  """
  along, along_square, mean_square, variance = map(np.asarray, moments)
  variance = variance / num_prompts
  forward = np.where(along > 0, along_square, 0)
  mse = 1 - _ratio(forward, mean_square + variance)
  bias_square = 1 - _ratio(forward, mean_square)
  return Quality(
    mse,
    bias_square,
    mse - bias_square,
    _ratio(variance, mean_square),
    along / truth_norm,
  )


def _ratio(value, divisor):
  """value / divisor, 0 where the divisor is not positive."""
  positive = divisor > 0
  return np.where(positive, value / np.where(positive, divisor, 1), 0)
