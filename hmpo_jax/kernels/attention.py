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

See "FlashAttention-2" by Dao (https://arxiv.org/abs/2307.08691).
"""

import functools

import jax
from jax import ad_checkpoint
import jax.numpy as jnp

from hmpo_jax.kernels import checks
from hmpo_jax.kernels import reductions
from hmpo_jax.kernels import wide

# Names for jax.checkpoint, of what the gradient needs beside its arguments.
MIXED, LOG_SUMS = 'attention_mixed', 'attention_log_sums'
# Tokens of a block: on CPU its logits then stay in the cache of a core.
_BLOCK_SIZE = 96
# On CPU so many logits of several sequences are made at once: 2 MB.
_LOGITS_AT_ONCE = 2**19
# Up to this many tokens all logits are one array; at 80 blocks are faster.
_PLAIN_LENGTH = 64


def causal_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    valid: jax.Array,
    *,
    block_size: int = _BLOCK_SIZE) -> tuple[jax.Array, jax.Array]:
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

  Returns:
    mixed: [B, S, H, Dh] in the dtype of the query; sums and softmax are made in
      float32 or better. 0, with gradient 0, for a query that sees nothing.
    max_logits: [H] float32 largest logit of a valid query on a key that it
      sees, -inf if there is none, NaN if one is NaN; has no gradient.

  Raises:
    ValueError: block_size is not positive, or K does not divide H.
    AssertionError: shapes or dtypes don't fit.
  """
  if query.shape[1] <= _PLAIN_LENGTH:
    _check_block_size(block_size)
    return plain(query, key, value, valid)
  return blockwise(query, key, value, valid, block_size=block_size)


def plain(query: jax.Array, key: jax.Array, value: jax.Array,
          valid: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`causal_attention` with an array [B, K, H / K, S, S] of all logits."""
  query, key, value = map(jnp.asarray, (query, key, value))
  _check(query, key, value, valid)
  if _is_empty(query):
    return _nothing(query)
  batch, length, heads, width = query.shape
  grouped = query.reshape(batch, length, key.shape[2], -1, width)
  logits = wide.einsum('bskgd,brkd->bkgsr', grouped, key) / width**0.5
  causal = jnp.tril(jnp.ones((length, length), bool))
  visible = (causal & valid[:, None, :])[:, None, None]
  sees = jnp.any(visible, axis=-1, keepdims=True)
  # Any finite logits will do where nothing is seen: the weights become 0.
  logits = jnp.where(visible | ~sees, logits, -jnp.inf)
  weights = jnp.where(sees, jax.nn.softmax(logits, axis=-1), 0)
  top = jax.lax.stop_gradient(logits).max(axis=-1)
  # A maximum may lose NaN, of which a softmax makes NaN everywhere.
  top = jnp.where(jnp.isnan(weights[..., 0]), jnp.nan, top)
  mixed = wide.einsum('bkgsr,brkd->bskgd', weights.astype(value.dtype), value)
  counted = sees[..., 0] & valid[:, None, None, :]
  max_logits = reductions.nan_max(
      jnp.where(counted, top, -jnp.inf), axis=(0, 3))
  return (mixed.reshape(query.shape).astype(query.dtype),
          max_logits.reshape(heads).astype(jnp.float32))


def blockwise(query: jax.Array,
              key: jax.Array,
              value: jax.Array,
              valid: jax.Array,
              *,
              block_size: int = _BLOCK_SIZE) -> tuple[jax.Array, jax.Array]:
  """`causal_attention` in memory linear in S; reverse mode, first order only.

  On CPU few sequences go at once and their blocks stay in the cache; elsewhere
  each step is of all sequences.
  """
  query, key, value = map(jnp.asarray, (query, key, value))
  _check(query, key, value, valid)
  _check_block_size(block_size)
  if _is_empty(query):
    return _nothing(query)
  num_blocks = -(-query.shape[1] // block_size)
  # Blocks of equal sizes, in whole vectors: less padding at the end.
  size = -(-query.shape[1] // num_blocks)
  return _blockwise(-(-size // 8) * 8, query, key, value, valid)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blockwise(size, query, key, value, valid):
  return _forward(size, query, key, value, valid)[0]


def _forward(size, query, key, value, valid):
  """The results, and what the gradient needs."""
  row = functools.partial(_forward_row, size)
  mixed, log_sums, max_logits = _over_rows(row, size, query, key, value, valid)
  # By these names a rematerialised layer keeps them, and not all of this again.
  mixed = ad_checkpoint.checkpoint_name(mixed, MIXED)
  log_sums = ad_checkpoint.checkpoint_name(log_sums, LOG_SUMS)
  kept = query, key, value, valid, mixed, log_sums
  return (mixed, reductions.nan_max(max_logits, axis=0)), kept


def _backward(size, kept, cotangents):
  row = functools.partial(_backward_row, size)
  return *_over_rows(row, size, *kept, cotangents[0]), None


_blockwise.defvjp(_forward, _backward)


def _forward_row(size, query, key, value, valid):
  """One sequence: mixed [S, H, Dh], log sums [S, H], largest logits [H]."""
  length, heads, width = query.shape
  groups, dtype = heads // key.shape[1], wide.dtype_of(query)
  keys, values = _split(key, size), _split(value, size)
  hidden, causal = _hidden(valid, size, dtype), _causal(size, groups)

  def of_queries(_, block):
    i, queries = block

    def step(j, carry, is_diagonal=False):
      top, total, mixed = carry
      logits = wide.einsum('krd,ktd->krt', queries, _at(
          keys, j)) / width**0.5 + _at(hidden, j)
      if is_diagonal:
        logits = jnp.where(causal, logits, -jnp.inf)
      higher = jnp.maximum(top, logits.max(axis=-1, keepdims=True))
      weights = jnp.exp(logits - higher)
      shrink = jnp.exp(top - higher)
      total = shrink * total + weights.sum(axis=-1, keepdims=True)
      return higher, total, shrink * mixed + wide.einsum(
          'krt,ktd->krd', weights.astype(value.dtype), _at(values, j))

    # The lowest number rather than -inf, whose differences are NaN.
    of_rows = queries.shape[:2]
    start = (jnp.full(
        (*of_rows, 1),
        jnp.finfo(dtype).min, dtype), jnp.zeros(
            (*of_rows, 1), dtype), jnp.zeros((*of_rows, width), dtype))
    carry = jax.lax.fori_loop(0, i, step, start)
    top, total, mixed = step(i, carry, is_diagonal=True)
    # The largest weight is 1 before the division: no total is 0 but of nothing.
    sees = total != 0
    divisor = jnp.where(sees, total, 1)
    # A maximum may lose NaN, a sum doesn't.
    top = jnp.where(jnp.isnan(total), jnp.nan, top)
    return None, ((mixed / divisor).astype(query.dtype),
                  jnp.where(sees, top + jnp.log(divisor),
                            0), jnp.where(sees, top, -jnp.inf))

  blocks = _split(query, size, groups)
  _, results = jax.lax.scan(of_queries, None, (jnp.arange(len(blocks)), blocks))
  mixed, log_sums, tops = (_join(x, length, groups) for x in results)
  tops = jnp.where(valid[:, None], tops[..., 0], -jnp.inf)
  return (mixed, log_sums[...,
                          0], reductions.nan_max(tops,
                                                 axis=0).astype(jnp.float32))


def _backward_row(size, query, key, value, valid, mixed, log_sums, gradient):
  """One sequence: gradients of query, key and value, from that of mixed."""
  length, heads, width = query.shape
  groups, dtype = heads // key.shape[1], wide.dtype_of(query)
  inner = jnp.sum(mixed.astype(dtype) * gradient.astype(dtype), axis=-1)
  queries, gradients, log_sums, inner = (
      _split(x, size, groups)
      for x in (query, gradient, log_sums[..., None], inner[..., None]))
  causal = _causal(size, groups)

  def of_keys(of_queries, block):
    j, keys, values, hidden = block

    def step(i, carry, is_diagonal=False):
      of_queries, of_keys, of_values = carry
      rows, of_mixed = _at(queries, i), _at(gradients, i)
      logits = wide.einsum('krd,ktd->krt', rows, keys) / width**0.5 + hidden
      weights = jnp.exp(logits - _at(log_sums, i))
      if is_diagonal:
        weights = jnp.where(causal, weights, 0)
      of_weights = wide.einsum('krd,ktd->krt', of_mixed, values)
      of_logits = (weights * (of_weights - _at(inner, i))).astype(query.dtype)
      of_values += wide.einsum('krt,krd->ktd', weights.astype(value.dtype),
                               of_mixed)
      of_keys += wide.einsum('krt,krd->ktd', of_logits, rows)
      new = _at(of_queries, i) + wide.einsum('krt,ktd->krd', of_logits, keys)
      return (jax.lax.dynamic_update_index_in_dim(of_queries, new, i,
                                                  axis=0), of_keys, of_values)

    zeros = jnp.zeros(keys.shape, dtype)
    carry = step(j, (of_queries, zeros, zeros), is_diagonal=True)
    of_queries, *of_block = jax.lax.fori_loop(j + 1, len(queries), step, carry)
    return of_queries, of_block

  keys = _split(key, size)
  blocks = (jnp.arange(len(keys)), keys, _split(value, size),
            _hidden(valid, size, dtype))
  of_query, (of_key, of_value) = jax.lax.scan(of_keys,
                                              jnp.zeros(queries.shape, dtype),
                                              blocks)
  return (_join(of_query / width**0.5, length, groups).astype(query.dtype),
          _join(of_key / width**0.5,
                length).astype(key.dtype), _join(of_value,
                                                 length).astype(value.dtype))


def _over_rows(function, size, query, *arrays):
  """Applies a function of one sequence to all, as the platform likes it."""
  run = lambda rows: function(*rows)
  batch = query.shape[0]
  # What goes at once divides the batch and is as much as the cache takes.
  fitting = max(1, _LOGITS_AT_ONCE // (query.shape[2] * size**2))
  at_once = max(n for n in range(1, min(batch, fitting) + 1) if batch % n == 0)
  return jax.lax.platform_dependent(
      query,
      *arrays,
      cpu=lambda *rows: jax.lax.map(run, rows, batch_size=at_once),
      default=lambda *rows: jax.vmap(run)(rows))


def _split(x, size, groups=1):
  """[S, K G, D] as blocks [N, K, G size, D]; zeros fill the last one."""
  length, heads, width = x.shape
  x = jnp.pad(x, ((0, -length % size), (0, 0), (0, 0)))
  x = x.reshape(-1, size, heads // groups, groups, width)
  x = x.transpose(0, 2, 3, 1, 4)
  return x.reshape(len(x), heads // groups, groups * size, width)


def _join(blocks, length, groups=1):
  """The inverse of `_split`."""
  num, heads, rows, width = blocks.shape
  x = blocks.reshape(num, heads, groups, rows // groups, width)
  return x.transpose(0, 3, 1, 2, 4).reshape(-1, heads * groups, width)[:length]


def _hidden(valid, size, dtype):
  """[N, 1, 1, size] what is added to logits: 0, or -inf for a padding key."""
  hidden = jnp.where(valid, 0, -jnp.inf).astype(dtype)
  hidden = jnp.pad(hidden, (0, -len(valid) % size), constant_values=-jnp.inf)
  return hidden.reshape(-1, 1, 1, size)


def _causal(size, groups):
  """[G size, size] bool: what a block of queries sees of the keys beside it."""
  return jnp.tile(jnp.tril(jnp.ones((size, size), bool)), (groups, 1))


def _at(x, i):
  return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)


def _is_empty(query):
  """Whether there is no sequence, or none of them has a token."""
  return 0 in query.shape[:2]


def _nothing(query):
  """The results where there is nothing to see."""
  return jnp.zeros_like(query), jnp.full(query.shape[2], -jnp.inf, jnp.float32)


def _check_block_size(block_size):
  if block_size < 1:
    raise ValueError(f'{block_size=}: must be positive')


def _check(query, key, value, valid):
  checks.ranks(4, query=query, key=key, value=value)
  checks.dtypes(query.dtype, key=key, value=value)
  checks.dtypes(bool, valid=valid)
  batch, length, _, width = query.shape
  checks.shapes((batch, length, None, width), key=key)
  checks.shapes((batch, length), valid=valid)
  checks.same_shape(key=key, value=value)
  if query.shape[2] % key.shape[2]:
    raise ValueError('key heads must divide query heads: '
                     f'{query.shape=} {key.shape=}')
