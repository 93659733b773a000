"""Log-ratios of the tokens of a mask, and means that skip empty rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hmpo_jax.kernels import checks
from hmpo_jax.kernels import precision

AGGREGATIONS = (
  'sequence-mean-token-mean',
  'token-mean',
  'sequence-mean-token-sum',
)

# A number, traced or not.
Scalar = jax.Array | float

# Bound on an infinite log-ratio, in nats, where no smaller one is set.
_INFINITE = 20.0


class LogRatio(NamedTuple):
  """How far each token has left the policy that sampled it."""

  x: jax.Array  # [B, T] nats, 0 off the mask
  mask: jax.Array  # [B, T] bool, true on the trained tokens
  clamped: jax.Array  # [B, T] bool, tokens without gradient
  logprobs: jax.Array  # [B, T] under the new policy, finite, 0 off the mask
  metrics: dict[str, jax.Array]


def log_ratio(
  logprobs: jax.Array,
  old_logprobs: jax.Array,
  mask: jax.Array,
  log_ratio_max: jax.Array | float,
) -> LogRatio:
  """x_t = logprobs - old_logprobs within +-log_ratio_max; no gradient beyond.

  A token that both policies rule out (-inf twice) is clamped to 0, one that
  only one of them rules out to 20 nats where log_ratio_max is infinite.

  Args:
    logprobs: [B, T] under the policy that learns, in nats.
    old_logprobs: [B, T] under the policy that sampled; a constant.
    mask: [B, T] bool, true on the trained tokens.
    log_ratio_max: [] positive, inf = off.
  """
  checks.ranks(2, logprobs=logprobs, old_logprobs=old_logprobs, mask=mask)
  checks.same_shape(logprobs=logprobs, old_logprobs=old_logprobs, mask=mask)
  checks.dtypes(bool, mask=mask)
  checks.dtypes(float, logprobs=logprobs, old_logprobs=old_logprobs)
  dtype = precision.dtype_of(logprobs)
  new = jnp.where(mask, logprobs, 0).astype(dtype)
  old = jax.lax.stop_gradient(jnp.where(mask, old_logprobs, 0).astype(dtype))
  # From the lowest number instead of -inf, two that are ruled out differ by 0.
  lowest = jnp.finfo(dtype).min
  difference = jnp.maximum(new, lowest) - jnp.maximum(old, lowest)
  distance = jax.lax.stop_gradient(jnp.abs(difference))
  infinite = -lowest / 2
  bound = jnp.where(
    distance > infinite, jnp.minimum(log_ratio_max, _INFINITE), log_ratio_max
  )
  clamped = jnp.isneginf(new) | (distance > bound)
  bounded = jax.lax.stop_gradient(jnp.clip(difference, -bound, bound))
  x = jnp.where(clamped, bounded, difference)
  # Of the two, what is finite: a token at -inf has the value of its bound.
  substitute = jnp.where(jnp.isfinite(old), old + bounded, 0)
  substitute = jnp.where(jnp.isinf(new), substitute, new)
  logprobs = jnp.where(clamped, jax.lax.stop_gradient(substitute), new)
  bad = lambda values: jnp.sum(~jnp.isfinite(values), dtype=dtype)
  return LogRatio(
    x,
    mask,
    clamped,
    logprobs,
    {
      'ratio/clamped_frac': jnp.sum(clamped) / jnp.maximum(jnp.sum(mask), 1),
      'nonfinite/logprobs': bad(new),
      'nonfinite/old_logprobs': bad(old),
    },
  )


def of_rows(
  advantages: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Which rows have tokens, and the advantages [B], 0 in all other rows."""
  checks.shapes(mask.shape[:1], advantages=advantages)
  checks.dtypes(float, advantages=advantages)
  rows = _count(mask, jnp.float32) > 0
  advantages = jax.lax.stop_gradient(jnp.where(rows, advantages, 0))
  return rows, advantages.astype(precision.dtype_of(advantages))


def row_mean(values: jax.Array, rows: jax.Array) -> jax.Array:
  """[] mean over the rows that have tokens; 0 if there is none."""
  total = jnp.sum(jnp.where(rows, values, 0))
  return total / jnp.maximum(jnp.sum(rows), 1)


def token_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
  """[B] mean over the tokens of each row; 0 for a row without tokens."""
  total = jnp.sum(jnp.where(mask, values, 0.0), axis=1)
  return total / jnp.maximum(_count(mask, total.dtype), 1)


def aggregate(
  token_means: jax.Array,
  mask: jax.Array,
  aggregation: str,
  length_scale: jax.Array | float,
) -> jax.Array:
  """From the rows' means over tokens to one number.

    sequence-mean-token-mean   mean_i mean_t: every response counts the same
                               (GRPO, GSPO).
    token-mean                 sum_it / sum_i n_i: every token counts the same
                               (DAPO, BNPO, CISPO).
    sequence-mean-token-sum    mean_i sum_t / length_scale: every token counts
                               the same whatever else is in the batch (Dr. GRPO
                               with length_scale the longest response; LUSPO).

  Args:
    token_means: [B]; of a loss on sequences, its value for each.
    mask: [B, T] bool, true on the trained tokens.
    aggregation: one of AGGREGATIONS.
    length_scale: [] tokens; used by the last alone.

  Returns:
    [] 0 if no row has a token; rows without tokens count nowhere.

  Raises:
    ValueError: unknown aggregation.
  """
  lengths = _count(mask, token_means.dtype)
  rows = lengths > 0
  if aggregation == 'sequence-mean-token-mean':
    return row_mean(token_means, rows)
  sums = jnp.where(rows, token_means * lengths, 0)
  if aggregation == 'token-mean':
    return jnp.sum(sums) / jnp.maximum(jnp.sum(lengths), 1)
  if aggregation == 'sequence-mean-token-sum':
    return row_mean(sums, rows) / jax.lax.stop_gradient(length_scale)
  raise ValueError(f'{aggregation=}: must be one of {", ".join(AGGREGATIONS)}')


def _count(mask, dtype):
  """[B] tokens of each row."""
  # In floating point: XLA adds integers slowly on CPU.
  return jnp.sum(mask, axis=1, dtype=dtype)
