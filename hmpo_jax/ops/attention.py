"""Causal softmax attention, without an array of all its logits.

Query t of a head sees the valid keys s <= t, with logits and weights

  z_ts = q_t . k_s / sqrt(Dh),  w_ts = exp(z_ts - L_t),
  L_t = log sum_s exp(z_ts),    o_t = sum_s w_ts v_s.

A block of queries goes over the blocks of keys that it sees and keeps a running
maximum, a sum and a mix. With g_t the gradient of o_t, and dw_ts = g_t . v_s,

  dz_ts = w_ts (dw_ts - sum_r w_tr dw_tr) = w_ts (dw_ts - g_t . o_t)
  dv_s = sum_t w_ts g_t
  dq_t = sum_s dz_ts k_s / sqrt(Dh),  dk_s = sum_t dz_ts q_t / sqrt(Dh),

so that o and L are all that the gradient needs of the forward pass: it makes
the weights again, block by block. Blocks above the diagonal are never made.

The entropy of the weights needs no second pass either. With m the running
maximum, l = sum_s exp(z_s - m) and u = sum_s exp(z_s - m) (z_s - m),

  H = -sum_s w_s log w_s = L - sum_s w_s z_s = log l - u / l,

and a maximum that rises to m' makes l' = e^(m - m') l and
u' = e^(m - m') (u + (m - m') l). Neither term of H is negative: no digit
cancels, however large the logits are.

With narrow logits a softmax takes z rounded, as in a kernel that holds them so;
its sums are wide as ever, and the largest logits those before they are rounded.
One of +inf makes NaN of its query's row, forward and backward, as inf - inf
does in such a kernel; one of -inf has weight 0; a row of -inf alone sees
nothing, as in FlashAttention.

See "FlashAttention-2" by Dao (https://arxiv.org/abs/2307.08691).
"""

import functools
from typing import NamedTuple

import jax
from jax import ad_checkpoint
import jax.numpy as jnp

from hmpo_jax.kernels import checks
from hmpo_jax.kernels import precision
from hmpo_jax.ops import narrow
from hmpo_jax.ops import reductions
from hmpo_jax.ops import tiles

# Names for jax.checkpoint, of what the gradient needs beside its arguments.
MIXED, LOG_SUMS = 'attention_mixed', 'attention_log_sums'
# Tokens of a block: on CPU its logits then stay in the cache of a core.
_BLOCK_SIZE = 96
# Up to this many tokens all logits are one array; at 80 blocks are faster.
_PLAIN_LENGTH = 64


class _Options(NamedTuple):
  """What of attention is static."""

  logits_dtype: str = 'float32'
  has_entropy: bool = False

  @property
  def is_narrow(self):
    """Whether the softmax takes logits that are rounded."""
    return self.logits_dtype != 'float32'


def causal_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array,
  *,
  block_size: int = _BLOCK_SIZE,
  logits_dtype: str = 'float32',
) -> tuple[jax.Array, jax.Array]:
  """Grouped-query attention of each token to those before it and itself.

  Query head h reads key head h // (H // K). Sequences of few tokens take the
  `plain` form, others the `blockwise` one; they agree up to rounding.

  Args:
    query: [B, S, H, Dh] any float dtype; B and S may be 0.
    key: [B, S, K, Dh] of the same dtype; K divides H.
    value: [B, S, K, Dh] of the same dtype.
    valid: [B, S] bool, false on padding, which no token sees. Padding may hold
      any finite numbers.
    block_size: largest number of tokens of a block, positive.
    logits_dtype: one of narrow.DTYPES, that logits are rounded to before the
      softmax, see above.

  Returns:
    mixed: [B, S, H, Dh] in the dtype of the query; sums and softmax are made in
      float32 or better. 0, with gradient 0, for a query that sees nothing.
    max_logits: [H] float32 largest logit of a valid query on a key that it
      sees, before any rounding, -inf if there is none, NaN if one is NaN; has
      no gradient.

  Raises:
    ValueError: block_size is not positive, K does not divide H, or unknown
      logits_dtype.
    AssertionError: shapes or dtypes don't fit.
  """
  options = _Options(logits_dtype)
  return _attend(options, query, key, value, valid, block_size)[:2]


def causal_attention_and_entropy(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array,
  *,
  block_size: int = _BLOCK_SIZE,
  logits_dtype: str = 'float32',
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`causal_attention`, and how far each query spreads its weights.

  The arguments, and what it raises, are those of `causal_attention`.

  Returns:
    mixed: see `causal_attention`.
    max_logits: see `causal_attention`.
    entropies: [B, S, H] float32 or better, nats, of the weights of each query:
      from 0, where one key has all, to the log of the number of keys that it
      sees; 0 where it sees none. Has no gradient.
  """
  options = _Options(logits_dtype, has_entropy=True)
  return _attend(options, query, key, value, valid, block_size)


def _attend(options, query, key, value, valid, block_size):
  _check_block_size(block_size)
  if query.shape[1] <= _PLAIN_LENGTH:
    return _plain(options, query, key, value, valid)
  return _in_blocks(options, query, key, value, valid, block_size)


def plain(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array,
  *,
  logits_dtype: str = 'float32',
) -> tuple[jax.Array, jax.Array]:
  """`causal_attention` with an array [B, K, H / K, S, S] of all logits."""
  return _plain(_Options(logits_dtype), query, key, value, valid)[:2]


def _plain(options, query, key, value, valid):
  query, key, value = map(jnp.asarray, (query, key, value))
  _check(options, query, key, value, valid)
  if _is_empty(query):
    return _nothing(options, query)
  batch, length, heads, width = query.shape
  grouped = query.reshape(batch, length, key.shape[2], -1, width)
  logits = precision.einsum('bskgd,brkd->bkgsr', grouped, key) / width**0.5
  causal = jnp.tril(jnp.ones((length, length), bool))
  visible = (causal & valid[:, None, :])[:, None, None]
  sees = jnp.any(visible, axis=-1, keepdims=True)
  # Any finite logits will do where nothing is seen: the weights become 0.
  logits = jnp.where(visible | ~sees, logits, -jnp.inf)
  counted = sees[..., 0] & valid[:, None, None, :]
  if options.is_narrow:
    top = reductions.nan_max(jax.lax.stop_gradient(logits), axis=-1)
    logits = narrow.rounded(logits, options.logits_dtype)
    sees = jnp.any(visible & (logits != -jnp.inf), axis=-1, keepdims=True)
    logits = jnp.where(sees, logits, 0)
  weights = jnp.where(sees, jax.nn.softmax(logits, axis=-1), 0)
  if not options.is_narrow:
    top = jax.lax.stop_gradient(logits).max(axis=-1)
    # A maximum may lose NaN, of which a softmax makes NaN everywhere.
    top = jnp.where(jnp.isnan(weights[..., 0]), jnp.nan, top)
  mixed = precision.einsum(
    'bkgsr,brkd->bskgd', weights.astype(value.dtype), value
  )
  max_logits = reductions.nan_max(
    jnp.where(counted, top, -jnp.inf), axis=(0, 3)
  )
  entropies = None
  if options.has_entropy:
    entropies = _entropies(logits, sees)
    entropies = entropies.transpose(0, 3, 1, 2).reshape(batch, length, heads)
  return (
    mixed.reshape(query.shape).astype(query.dtype),
    max_logits.reshape(heads).astype(jnp.float32),
    entropies,
  )


def _entropies(logits, sees):
  """[...] of the softmax of logits [..., S], nats; 0 where nothing is seen."""
  below = jax.lax.stop_gradient(logits)
  below -= below.max(axis=-1, keepdims=True)
  weights = jnp.exp(below)
  total = weights.sum(axis=-1)
  # 0 times the lowest number is 0, times -inf it is NaN.
  below = jnp.maximum(below, jnp.finfo(below.dtype).min)
  spread = jnp.sum(weights * below, axis=-1)
  return jnp.where(sees[..., 0], jnp.log(total) - spread / total, 0)


def blockwise(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  valid: jax.Array,
  *,
  block_size: int = _BLOCK_SIZE,
  logits_dtype: str = 'float32',
) -> tuple[jax.Array, jax.Array]:
  """`causal_attention` in memory linear in S; reverse mode, first order only.

  On CPU few sequences go at once and their blocks stay in the cache; elsewhere
  each step is of all sequences.
  """
  _check_block_size(block_size)
  options = _Options(logits_dtype)
  return _in_blocks(options, query, key, value, valid, block_size)[:2]


def _in_blocks(options, query, key, value, valid, block_size):
  query, key, value = map(jnp.asarray, (query, key, value))
  _check(options, query, key, value, valid)
  if _is_empty(query):
    return _nothing(options, query)
  num_blocks = -(-query.shape[1] // block_size)
  # Blocks of equal sizes, in whole vectors: less padding at the end.
  size = -(-query.shape[1] // num_blocks)
  return _blockwise(options, -(-size // 8) * 8, query, key, value, valid)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blockwise(options, size, query, key, value, valid):
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


_blockwise.defvjp(_forward, _backward)


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


def _backward_row(
  options, size, query, key, value, valid, mixed, log_sums, gradient
):
  """One sequence: gradients of query, key and value, from that of mixed."""
  length, heads, width = query.shape
  groups, dtype = heads // key.shape[1], precision.dtype_of(query)
  inner = jnp.sum(mixed.astype(dtype) * gradient.astype(dtype), axis=-1)
  queries, gradients, log_sums, inner = (
    tiles.split(x, size, groups)
    for x in (query, gradient, log_sums[..., None], inner[..., None])
  )
  causal = tiles.causal(size, groups)

  def of_keys(of_queries, block):
    j, keys, values, hidden = block

    def step(i, carry, is_diagonal=False):
      of_queries, of_keys, of_values = carry
      rows, of_mixed = tiles.at(queries, i), tiles.at(gradients, i)
      logits = (
        precision.einsum('krd,ktd->krt', rows, keys) / width**0.5 + hidden
      )
      logits = narrow.rounded(logits, options.logits_dtype)
      weights = jnp.exp(logits - tiles.at(log_sums, i))
      if is_diagonal:
        weights = jnp.where(causal, weights, 0)
      of_weights = precision.einsum('krd,ktd->krt', of_mixed, values)
      of_logits = (weights * (of_weights - tiles.at(inner, i))).astype(
        query.dtype
      )
      of_values += precision.einsum(
        'krt,krd->ktd', weights.astype(value.dtype), of_mixed
      )
      of_keys += precision.einsum('krt,krd->ktd', of_logits, rows)
      new = tiles.at(of_queries, i) + precision.einsum(
        'krt,ktd->krd', of_logits, keys
      )
      return (
        jax.lax.dynamic_update_index_in_dim(of_queries, new, i, axis=0),
        of_keys,
        of_values,
      )

    zeros = jnp.zeros(keys.shape, dtype)
    carry = step(j, (of_queries, zeros, zeros), is_diagonal=True)
    of_queries, *of_block = jax.lax.fori_loop(j + 1, len(queries), step, carry)
    return of_queries, of_block

  keys = tiles.split(key, size)
  blocks = (
    jnp.arange(len(keys)),
    keys,
    tiles.split(value, size),
    tiles.hidden(valid, size, dtype),
  )
  of_query, (of_key, of_value) = jax.lax.scan(
    of_keys, jnp.zeros(queries.shape, dtype), blocks
  )
  return (
    tiles.join(of_query / width**0.5, length, groups).astype(query.dtype),
    tiles.join(of_key / width**0.5, length).astype(key.dtype),
    tiles.join(of_value, length).astype(value.dtype),
  )


def _is_empty(query):
  """Whether there is no sequence, or none of them has a token."""
  return 0 in query.shape[:2]


def _nothing(options, query):
  """The results where there is nothing to see."""
  entropies = jnp.zeros(query.shape[:3], precision.dtype_of(query))
  return (
    jnp.zeros_like(query),
    jnp.full(query.shape[2], -jnp.inf, jnp.float32),
    entropies if options.has_entropy else None,
  )


def _check_block_size(block_size):
  if block_size < 1:
    raise ValueError(f'{block_size=}: must be positive')


def _check(options, query, key, value, valid):
  narrow.check(options.logits_dtype)
  checks.ranks(4, query=query, key=key, value=value)
  checks.dtypes(query.dtype, key=key, value=value)
  checks.dtypes(bool, valid=valid)
  batch, length, _, width = query.shape
  checks.shapes((batch, length, None, width), key=key)
  checks.shapes((batch, length), valid=valid)
  checks.same_shape(key=key, value=value)
  if query.shape[2] % key.shape[2]:
    raise ValueError(
      f'key heads must divide query heads: {query.shape=} {key.shape=}'
    )
