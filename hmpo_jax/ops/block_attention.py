"""Causal softmax attention over blocks of queries and keys, and its gradient.

With logits z, weights w and log sums L of the keys s that query t sees,

  z_ts = q_t . k_s / sqrt(Dh),  w_ts = exp(z_ts - L_t),
  L_t = log sum_s exp(z_ts),    o_t = sum_s w_ts v_s.

A block of queries goes over the blocks of keys that it sees and keeps a running
maximum, a sum and a mix. With g_t the gradient of o_t, and dw_ts = g_t . v_s,

  dz_ts = w_ts (dw_ts - sum_r w_tr dw_tr) = w_ts (dw_ts - g_t . o_t)
  dv_s = sum_t w_ts g_t
  dq_t = sum_s dz_ts k_s / sqrt(Dh),  dk_s = sum_t dz_ts q_t / sqrt(Dh),

so that o and L are all that the gradient needs of the forward pass: it
recomputes the weights block by block. Blocks above the diagonal are never made.

The entropy of the weights needs no second pass either. With m the running
maximum, l = sum_s exp(z_s - m) and u = sum_s exp(z_s - m) (z_s - m),

  H = -sum_s w_s log w_s = L - sum_s w_s z_s = log l - u / l,

and a maximum that rises to m' makes l' = e^(m - m') l and
u' = e^(m - m') (u + (m - m') l). Neither term of H is negative: no digit
cancels, however large the logits are.

See "FlashAttention-2" by Dao (https://arxiv.org/abs/2307.08691).
"""

import functools
from typing import NamedTuple

import jax
from jax import ad_checkpoint
import jax.numpy as jnp

from hmpo_jax.kernels import precision
from hmpo_jax.ops import narrow
from hmpo_jax.ops import reductions
from hmpo_jax.ops import tiles

# Names for jax.checkpoint, of what the gradient needs beside its arguments.
MIXED, LOG_SUMS = 'attention_mixed', 'attention_log_sums'


class Options(NamedTuple):
  """What of attention is static."""

  logits_dtype: str = 'float32'
  has_entropy: bool = False

  @property
  def is_narrow(self):
    """Whether the softmax takes logits that are rounded."""
    return self.logits_dtype != 'float32'


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(
  options: Options,
  size: int,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Mixed values, largest logits and entropies, as in `attention`.

  Reverse mode, first order only. On CPU few sequences go at once and their
  blocks stay in the cache; elsewhere each step is of all sequences.

  Args:
    options: static.
    size: tokens of a block.
    query: [B, S, H, Dh]; B and S are not 0.
    key: [B, S, K, Dh].
    value: [B, S, K, Dh].
    valid: [B, S] bool.

  Returns:
    mixed [B, S, H, Dh], max_logits [H], and entropies [B, S, H] or None.
  """
  return _forward(options, size, query, key, value, valid)[0]


def _forward(options, size, query, key, value, valid):
  """The results, and what the gradient needs."""
  row = functools.partial(_forward_row, options, size)
  mixed, log_sums, max_logits, entropies = tiles.over_rows(
    row, size, query, key, value, valid
  )
  # By these names a rematerialised layer keeps them, and not all of this again.
  mixed = ad_checkpoint.checkpoint_name(mixed, MIXED)
  log_sums = ad_checkpoint.checkpoint_name(log_sums, LOG_SUMS)
  kept = query, key, value, valid, mixed, log_sums
  return (mixed, reductions.nan_max(max_logits, axis=0), entropies), kept


def _backward(options, size, kept, cotangents):
  row = functools.partial(_backward_row, options, size)
  return *tiles.over_rows(row, size, *kept, cotangents[0]), None


attend.defvjp(_forward, _backward)


def _forward_row(options, size, query, key, value, valid):
  """One sequence: mixed [S, H, Dh], log sums [S, H], largest logits [H].

  And the entropies [S, H], or None.
  """
  length, heads, width = query.shape
  groups, dtype = heads // key.shape[1], precision.dtype_of(query)
  keys, values = tiles.split(key, size), tiles.split(value, size)
  hidden, causal = tiles.hidden(valid, size, dtype), tiles.causal(size, groups)

  def of_queries(_, block):
    i, queries = block

    def step(j, carry, is_diagonal=False):
      top, total, mixed, largest, spread = carry
      logits = precision.einsum(
        'krd,ktd->krt', queries, tiles.at(keys, j)
      ) / width**0.5 + tiles.at(hidden, j)
      if is_diagonal:
        logits = jnp.where(causal, logits, -jnp.inf)
      if options.is_narrow:
        largest = jnp.maximum(
          largest, reductions.nan_max(logits, axis=-1)[..., None]
        )
        logits = narrow.rounded(logits, options.logits_dtype)
      higher = jnp.maximum(top, logits.max(axis=-1, keepdims=True))
      weights = jnp.exp(logits - higher)
      shrink = jnp.exp(top - higher)
      if options.has_entropy:
        # 0 times the lowest number is 0, times -inf it is NaN.
        below = jnp.maximum(logits - higher, jnp.finfo(dtype).min)
        raised = jnp.where(total > 0, (top - higher) * total, 0)
        spread = shrink * (spread + raised) + jnp.sum(
          weights * below, axis=-1, keepdims=True
        )
      total = shrink * total + weights.sum(axis=-1, keepdims=True)
      mixed = shrink * mixed + precision.einsum(
        'krt,ktd->krd', weights.astype(value.dtype), tiles.at(values, j)
      )
      return higher, total, mixed, largest, spread

    # The lowest number rather than -inf, whose differences are NaN.
    of_rows = queries.shape[:2]
    start = (
      jnp.full((*of_rows, 1), jnp.finfo(dtype).min, dtype),
      jnp.zeros((*of_rows, 1), dtype),
      jnp.zeros((*of_rows, width), dtype),
      jnp.full((*of_rows, 1), -jnp.inf, dtype) if options.is_narrow else None,
      jnp.zeros((*of_rows, 1), dtype) if options.has_entropy else None,
    )
    carry = jax.lax.fori_loop(0, i, step, start)
    top, total, mixed, largest, spread = step(i, carry, is_diagonal=True)
    # The largest weight is 1 before the division: no total is 0 but of nothing.
    sees = total != 0
    divisor = jnp.where(sees, total, 1)
    # A maximum may lose NaN, a sum doesn't.
    top = jnp.where(jnp.isnan(total), jnp.nan, top)
    if not options.is_narrow:
      largest = jnp.where(sees, top, -jnp.inf)
    if options.has_entropy:
      spread = jnp.log(divisor) - spread / divisor
    return None, (
      (mixed / divisor).astype(query.dtype),
      jnp.where(sees, top + jnp.log(divisor), 0),
      largest,
      spread,
    )

  blocks = tiles.split(query, size, groups)
  _, results = jax.lax.scan(of_queries, None, (jnp.arange(len(blocks)), blocks))
  mixed, *rest = jax.tree.map(lambda x: tiles.join(x, length, groups), results)
  log_sums, tops, entropies = jax.tree.map(lambda x: x[..., 0], rest)
  tops = jnp.where(valid[:, None], tops, -jnp.inf)
  max_logits = reductions.nan_max(tops, axis=0).astype(jnp.float32)
  return mixed, log_sums, max_logits, entropies


def _backward_row(options, size, query, key, value, valid, mixed, log_sums, g):
  """One sequence: dq, dk and dv from g, the gradient of mixed."""
  length, heads, width = query.shape
  groups, dtype = heads // key.shape[1], precision.dtype_of(query)
  inner = jnp.sum(mixed.astype(dtype) * g.astype(dtype), axis=-1)
  queries, gradients, log_sums, inner = (
    tiles.split(x, size, groups)
    for x in (query, g, log_sums[..., None], inner[..., None])
  )
  causal = tiles.causal(size, groups)

  def of_keys(dq, block):
    j, keys, values, hidden = block

    def step(i, carry, is_diagonal=False):
      dq, dk, dv = carry
      rows, g = tiles.at(queries, i), tiles.at(gradients, i)
      logits = (
        precision.einsum('krd,ktd->krt', rows, keys) / width**0.5 + hidden
      )
      logits = narrow.rounded(logits, options.logits_dtype)
      weights = jnp.exp(logits - tiles.at(log_sums, i))
      if is_diagonal:
        weights = jnp.where(causal, weights, 0)
      dw = precision.einsum('krd,ktd->krt', g, values)
      dz = (weights * (dw - tiles.at(inner, i))).astype(query.dtype)
      dv += precision.einsum('krt,krd->ktd', weights.astype(value.dtype), g)
      dk += precision.einsum('krt,krd->ktd', dz, rows)
      of_rows = tiles.at(dq, i) + precision.einsum('krt,ktd->krd', dz, keys)
      dq = jax.lax.dynamic_update_index_in_dim(dq, of_rows, i, axis=0)
      return dq, dk, dv

    zeros = jnp.zeros(keys.shape, dtype)
    carry = step(j, (dq, zeros, zeros), is_diagonal=True)
    dq, dk, dv = jax.lax.fori_loop(j + 1, len(queries), step, carry)
    return dq, (dk, dv)

  keys = tiles.split(key, size)
  blocks = (
    jnp.arange(len(keys)),
    keys,
    tiles.split(value, size),
    tiles.hidden(valid, size, dtype),
  )
  dq, (dk, dv) = jax.lax.scan(of_keys, jnp.zeros(queries.shape, dtype), blocks)
  return (
    tiles.join(dq / width**0.5, length, groups).astype(query.dtype),
    tiles.join(dk / width**0.5, length).astype(key.dtype),
    tiles.join(dv, length).astype(value.dtype),
  )
