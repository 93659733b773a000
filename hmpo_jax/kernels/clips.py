"""Clip ranges of ratios: where they lie, what they stop, how they widen.

All compare logs: 1 - 3e-4 and 1 + 4e-4 are both 1 in bfloat16.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import means
from hmpo_jax.kernels import ratios

CENTERS = ('one', 'geometric', 'unbiased')

_SHIFT_MAX = 20.0  # nats
_HUGE = 80.0  # nats; exp of 88.8 overflows in float32


class Clipped(NamedTuple):
  """Values after a clip, and which of them the low and the high side stop."""

  values: jax.Array
  low: jax.Array  # bool
  high: jax.Array  # bool
  outside: jax.Array  # bool, beyond either edge whatever the sign of A

  @property
  def stopped(self) -> jax.Array:
    """bool, where either side stops."""
    return self.low | self.high


def edges(
  clip_eps_low: jax.Array | float, clip_eps_high: jax.Array | float, dtype
) -> tuple[jax.Array, jax.Array]:
  """log(1 - eps_low) and log(1 + eps_high), constants to a gradient."""
  low, high = (
    jax.lax.stop_gradient(jnp.asarray(eps, dtype))
    for eps in (clip_eps_low, clip_eps_high)
  )
  return jnp.log1p(-low), jnp.log1p(high)


def one_sided(
  log_ratio: jax.Array,
  advantages: jax.Array,
  low_edge: jax.Array,
  high_edge: jax.Array,
) -> Clipped:
  """The clip inside min(r A, clip(r) A): low where A < 0, high where A > 0.

  A ratio that lies on an edge is neither stopped nor outside. Shapes broadcast.
  """
  below, above = log_ratio < low_edge, log_ratio > high_edge
  low, high = (advantages < 0) & below, (advantages > 0) & above
  kept = jnp.where(low, low_edge, jnp.where(high, high_edge, log_ratio))
  return Clipped(kept, low, high, below | above)


def objective(
  log_value: jax.Array, advantages: jax.Array, dual_clip: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
  """exp(log_value) A, at least dual_clip A where A < 0; and where that binds.

  Shapes broadcast; where it binds there is no gradient. Where A is 0 it is 0,
  with gradient 0, also of a value that overflows.
  """
  top = jax.lax.stop_gradient(jnp.log(jnp.asarray(dual_clip, log_value.dtype)))
  dual = (advantages < 0) & (log_value > top)
  kept = jnp.where(dual, top, log_value)
  kept = jnp.where((advantages == 0) & (kept > _HUGE), 0, kept)
  return jnp.exp(kept) * advantages, dual


def center(
  log_ratio: jax.Array, mask: jax.Array, p: jax.Array, clip_center: str
) -> tuple[jax.Array, jax.Array]:
  """Where the clip range of each row lies, and what is compared with it.

  Under the policy that sampled E[r_t] = 1, so that log M_p is about
  (p - 1) var(x) / 2: one range around 1 stops a lower order more often at its
  low side and less often at its high side. The edges move by c_i with

    one         c_i = 0
    geometric   c_i = log M_p,i - log M_0,i: every order has the mask of GSPO
    unbiased    c_i = (p - 1) v / 2, v the mean over rows of the population
                variance within the row; moves p = 0 too, so it is not GSPO.
                At most 20 nats, so that the value of an edge is finite. It
                assumes rows that were not yet trained on, those of the first
                epoch, and v is low by a share 1 / n.

  The mean of 'unbiased' is over the whole batch that the loss is given, on all
  its devices where that is sharded under jit.

  Args:
    log_ratio: [B, T] nats.
    mask: [B, T] bool.
    p: [] or [B] order whose mean is compared.
    clip_center: one of CENTERS.

  Returns:
    c [B] and log M_p - c [B], in nats; no gradient flows.

  Raises:
    ValueError: unknown center.
  """
  x, p = jax.lax.stop_gradient((log_ratio, p))
  log_mean = means.log_power_mean(x, mask, p)
  if clip_center == 'one':
    return jnp.zeros_like(log_mean), log_mean
  if clip_center == 'geometric':
    geometric = means.log_power_mean(x, mask, 0.0)
    return log_mean - geometric, geometric
  if clip_center == 'unbiased':
    variance = ratios.token_mean(
      (x - ratios.token_mean(x, mask)[:, None]) ** 2, mask
    )
    middle = ratios.row_mean(variance, jnp.any(mask, axis=1))
    shift = jnp.clip((p - 1) * middle / 2, -_SHIFT_MAX, _SHIFT_MAX)
    shift = jnp.broadcast_to(shift, log_mean.shape)
    return shift, log_mean - shift
  raise ValueError(f'{clip_center=}: must be one of {", ".join(CENTERS)}')


class Tracking(NamedTuple):
  """How the widths of the clip range follow their targets: traced scalars."""

  rate: jax.Array  # [] k, of log eps per rollout; 0 = fixed
  target_low: jax.Array  # [] fraction of the rows with A < 0 clipped low
  target_high: jax.Array  # [] fraction of the rows with A > 0 clipped high
  eps_min: jax.Array  # [] bounds on both widths
  eps_max: jax.Array  # []


class Widths(NamedTuple):
  """The clip range 1 - eps_low to 1 + eps_high, carried from step to step."""

  eps_low: jax.Array  # []
  eps_high: jax.Array  # []


def track(
  tracking: Tracking,
  widths: Widths,
  low: jax.Array,
  high: jax.Array,
  negative: jax.Array,
  positive: jax.Array,
) -> Widths:
  """Widths for the next rollout, log eps += k (fraction - target).

  One shared range confounds the order with how tight the clip is. With widths
  that follow, what is clipped is nearly equal for all orders, and it is the
  widths that differ; a side whose width ends at a bound clips less or more than
  its target, as the high side of the harmonic mean does at eps_min while few of
  its ratios are above 1. Ours.

  Args:
    tracking: rate, targets and bounds.
    widths: of the rollout that ended.
    low: [U] share of all rows clipped low in each of its last updates.
    high: [U] share of all rows clipped high.
    negative: [U] share of all rows with A < 0.
    positive: [U] share of all rows with A > 0.

  Returns:
    The next widths within their bounds; unchanged, to the bit, at rate 0, and
    where no row had that sign or a share is not finite.
  """

  def follow(eps, clipped, signed, target):
    count = jnp.sum(signed)
    has = (count > 0) & jnp.isfinite(jnp.sum(clipped) + count)
    fraction = jnp.sum(clipped) / jnp.where(has, count, 1)
    step = jnp.where(has, tracking.rate * (fraction - target), 0)
    moved = jnp.clip(eps * jnp.exp(step), tracking.eps_min, tracking.eps_max)
    return jnp.where(step == 0, eps, moved)

  return Widths(
    follow(widths.eps_low, low, negative, tracking.target_low),
    follow(widths.eps_high, high, positive, tracking.target_high),
  )
